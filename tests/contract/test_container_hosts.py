"""The hosts of one training job, as processes with a tree and an address each, over a real S3."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ray_jobs.models.bundle_files import read_index, verify
from ray_jobs.result import JobResult
from ray_jobs.run import Run, flatten
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.targets.sagemaker.request import training_job_request
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from tests.conftest import SMALL_GCODE
from tests.contract.conftest import end, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STORAGE = "s3://runs/hosts"
FIRST, SECOND = "127.0.0.2", "127.0.0.3"
FIRE = (
    "data.samples=2000",
    "members=[logistic_regression, gradient_boosting]",
    "members.gradient_boosting.num_rounds=10",
    "resources.num_cpus=1",
)
GCODE = (*SMALL_GCODE, "resources.num_workers=2", "resources.num_cpus=1", "train.epochs=40")


class Host:
    """A container: its /opt/ml, and the process that is started in it."""

    def __init__(self, base: Path, environment: dict[str, str]):
        self.base = base
        self._environment = {**environment, "EMBERLINE_ML_DIR": str(base)}
        self.log = base / "log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> Host:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs.container", "train"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
            )
        return self

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=200)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text()) from None

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def failure(self) -> str | None:
        path = self.base / "output" / "failure"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


class Job:
    """A training job on hosts of this machine, which share nothing but S3."""

    def __init__(self, folder: Path, s3: dict[str, str]):
        self._folder = folder
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets: their paths must be short
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_AUTH", "MLFLOW_"))
        }
        self._environment = {
            **inherited,
            **s3,
            "RAY_TMPDIR": str(self.scratch),
            "EMBERLINE_RAY_PORT": str(free_ports(1)[0]),
            "TRAINING_JOB_NAME": "job-1",
            "PYTHONUNBUFFERED": "1",
        }

    def host(
        self, name: str, hosts: tuple[str, ...], workload: str, run_id: str, *overrides: str,
        **environment: str,
    ) -> Host:  # fmt: skip
        """A host with what SageMaker writes before it starts the container."""
        base = self._folder / f"{run_id}-{name}"
        config = base / "input" / "config"
        config.mkdir(parents=True)
        sagemaker = SageMakerSpec(
            role_arn="arn:aws:iam::123456789012:role/emberline",
            image_uri="123456789012.dkr.ecr.eu-west-1.amazonaws.com/emberline:0.1.0",
            instance_count=len(hosts),
        )
        spec = load_spec(workload, overrides=overrides, storage=STORAGE)
        request = training_job_request(spec, sagemaker, run_id=run_id, name="job-1", owner="ada")
        resources = {"current_host": name, "hosts": [*hosts], "network_interface_name": "lo"}
        (config / "hyperparameters.json").write_text(json.dumps(request["HyperParameters"]))
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        return Host(base, {**self._environment, **environment})

    def pair(
        self, workload: str, run_id: str, *overrides: str, **environment: str
    ) -> tuple[Host, Host]:
        first, second = (
            self.host(name, (FIRST, SECOND), workload, run_id, *overrides, **environment)
            for name in (FIRST, SECOND)
        )
        return first, second

    def left_running(self) -> list[psutil.Process]:
        """Processes of the job's hosts: they have a tree, or Ray's files are theirs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                base = process.environ().get("EMBERLINE_ML_DIR", "")
                is_of_ray = str(self.scratch) in " ".join(process.cmdline())
                if base.startswith(str(self._folder)) or is_of_ray:
                    found.append(process)
        return found


@pytest.fixture
def job(tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    for key, value in s3.items():
        monkeypatch.setenv(key, value)
    made = Job(tmp_path, s3)
    try:
        yield made
    finally:
        left = made.left_running()
        names = [process.name() for process in left]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=20)
        shutil.rmtree(made.scratch, ignore_errors=True)
    assert not names, names


def result_of(workload: str, run_id: str) -> JobResult:
    result = Run.open(STORAGE, workload, run_id).read_result()
    assert result is not None
    return result


def meeting(workload: str, run_id: str) -> dict[str, object]:
    storage = Run.open(STORAGE, workload, run_id).storage
    return json.loads(storage.read_bytes(f"{workload}/{run_id}/hosts/job-1.json"))


def test_two_hosts_do_what_one_does(job: Job) -> None:
    first, second = job.pair("fire", "two", *FIRE)
    second.start()  # it is patient
    first.start()
    assert first.wait() == 0, first.text()
    assert second.wait() == 0, second.text()
    assert "a Ray cluster of 2 hosts" in first.text()
    assert (first.failure, second.failure) == (None, None)
    verify(first.base / "model", read_index(first.base / "model")["files"])
    assert list((second.base / "model").iterdir()) == []
    told = meeting("fire", "two")
    assert told.keys() == {"exit_code", "written_at"}  # and no token
    assert told["exit_code"] == 0

    alone = job.host("algo-1", ("algo-1",), "fire", "one", *FIRE).start()
    assert alone.wait() == 0, alone.text()
    stored = (alone.base / "checkpoints/fire/one/result.json").read_bytes()
    expected = JobResult.model_validate_json(stored)
    found, wanted = (
        flatten(r.model_dump(mode="json", include={"metrics"}, exclude_none=True))
        for r in (result_of("fire", "two"), expected)
    )
    assert len(wanted) > 10
    assert found == pytest.approx(wanted, rel=0, abs=1e-6)


def workers_of(host: Host) -> int:
    num_workers = 0
    for process in host.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            num_workers += "RayTrainWorker" in " ".join(process.cmdline())
    return num_workers


@pytest.mark.timeout(480)
def test_a_network_is_trained_by_a_worker_a_host_and_goes_on_after_a_notice(job: Job) -> None:
    first, second = job.pair("gcode", "net", *GCODE)
    first.start()
    second.start()
    seen: set[tuple[int, int]] = set()
    storage, folder = Storage(STORAGE), "gcode/net"
    files: list[str] = []
    while not any("/epoch-" in path for path in files):
        assert first.process.poll() is None, first.text()
        assert second.process.poll() is None, second.text()
        seen.add((workers_of(first), workers_of(second)))
        files = storage.list(folder, recursive=True)
        time.sleep(0.5)
    assert max(seen) == (1, 1)
    assert any("/ray-train/" in path for path in files), "Ray Train's files are where all see them"
    assert "token" not in meeting("gcode", "net")
    for host in (second, first):
        host.process.send_signal(signal.SIGTERM)
    assert first.wait() == 130, first.text()
    assert second.wait() == 130, second.text()
    assert (first.failure, second.failure) == (None, None)
    assert not job.left_running()

    second.start()  # it finds how the first attempt has ended, and does not take it for the end
    first.start()
    assert first.wait() == 0, first.text()
    assert second.wait() == 0, second.text()
    assert "[emberline] model goes on from epoch" in first.text()
    assert result_of("gcode", "net").status == "SUCCEEDED"
    verify(first.base / "model", read_index(first.base / "model")["files"])
    assert not any("ray-train" in path for path in storage.list(folder, recursive=True))


def test_a_job_that_fails_on_the_first_host_fails_on_the_others(job: Job) -> None:
    first, second = job.pair("fire", "bad", "data.path=s3://rows/none.csv", *FIRE[1:])
    first.start()
    second.start()
    assert first.wait() == 3, first.text()
    assert second.wait() == 3, second.text()
    assert first.failure is not None
    assert "none.csv" in first.failure
    assert second.failure == f"host '{FIRST}' failed: {first.failure}"


def test_a_job_whose_first_host_is_lost_ends_on_the_others(job: Job) -> None:
    variables = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}  # else it hopes for a minute
    first, second = job.pair("fire", "lost", *FIRE, **variables)
    first.start()
    second.start()
    while "a Ray cluster of 2 hosts" not in first.text():
        assert first.process.poll() is None, first.text()
        time.sleep(0.2)
    end(first.process)
    assert second.wait() == 5, second.text()
    assert second.failure == (
        f"host '{FIRST}', which carries the job out, was lost; submit the run again: it goes on "
        "from its last checkpoint"
    )
    assert not job.left_running()


def test_a_host_that_never_comes_is_named(job: Job) -> None:
    alone = job.host(
        FIRST, (FIRST, SECOND), "fire", "missing", *FIRE, EMBERLINE_JOIN_TIMEOUT_S="5"
    ).start()
    assert alone.wait() == 5, alone.text()
    assert alone.failure is not None
    assert alone.failure.startswith(f"host '{SECOND}' did not join within 5 s; look at the log of")
    assert meeting("fire", "missing")["exit_code"] == 5
