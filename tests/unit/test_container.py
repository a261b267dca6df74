from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.container import SPEC_PARTS, STORAGE, _as_carried_out, main, read_job
from ray_jobs.container_cluster import JOIN_TIMEOUT_S, PORT, end_is_told
from ray_jobs.container_log import progress_line
from ray_jobs.errors import DataError, PreflightError, SpecError
from ray_jobs.models.bundle_files import read_index, verify
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.sagemaker.request import metric_definitions, training_job_request
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from tests.conftest import SMALL_GCODE

RUN = "20261121-120000-abcd"
SAGEMAKER = SageMakerSpec(
    role_arn="arn:aws:iam::123456789012:role/emberline",
    image_uri="123456789012.dkr.ecr.eu-west-1.amazonaws.com/emberline:0.1.0",
)
SMALL_FIRE = (
    "data.samples=600",
    "members=[logistic_regression]",
    "resources.num_cpus=1",
)


def write_tree(
    base: Path,
    workload: str,
    *overrides: str,
    channels: dict[str, str] | None = None,
    hosts: tuple[str, ...] = ("algo-1",),
    values: dict[str, str] | None = None,
    current: int = 0,
) -> None:
    """What SageMaker writes for a request of ours before it starts the container."""
    spec = load_spec(workload, overrides=overrides, storage="s3://runs/team")
    request = training_job_request(
        spec, SAGEMAKER, run_id=RUN, name="a", owner="ada", channels=channels
    )
    config = base / "input" / "config"
    config.mkdir(parents=True)
    write(config / "hyperparameters.json", {**request["HyperParameters"], **(values or {})})
    write(
        config / "resourceconfig.json",
        {"current_host": hosts[current], "hosts": list(hosts), "network_interface_name": "eth0"},
    )
    if channels:
        write(
            config / "inputdataconfig.json",
            {name: {"TrainingInputMode": "File"} for name in channels},
        )


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def start(base: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.container", "train"],
        env={**environment, "EMBERLINE_ML_DIR": str(base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failure(base: Path) -> str:
    return (base / "output" / "failure").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBERLINE_ML_DIR", str(tmp_path))
    return tmp_path


# What the container is told


def test_the_job_is_read_from_what_sagemaker_writes(tmp_path: Path) -> None:
    write_tree(tmp_path, "gcode")
    job = read_job(tmp_path)
    assert job.spec == load_spec("gcode", storage=str(tmp_path / "checkpoints"))
    assert (job.run_id, job.current_host, job.channels) == (RUN, "algo-1", {})


def test_several_hosts_share_a_storage(tmp_path: Path) -> None:
    hosts = ("algo-1", "algo-2")
    write_tree(tmp_path / "a", "fire", hosts=hosts, values={STORAGE: "s3://runs/team"})
    job = read_job(tmp_path / "a")
    assert (job.spec.storage, job.hosts, job.network_interface) == (
        "s3://runs/team",
        [*hosts],
        "eth0",
    )
    write_tree(tmp_path / "b", "fire", hosts=hosts)
    with pytest.raises(SpecError, match=r"2 hosts need the hyperparameter emberline\.storage"):
        read_job(tmp_path / "b")


def test_a_channel_without_files_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, "fire", channels={"data": "s3://rows/fire/"})
    with pytest.raises(DataError, match="channel 'data' has no files; look at the S3 prefix"):
        read_job(tmp_path)
    (tmp_path / "input/data/data").mkdir(parents=True)
    with pytest.raises(DataError):
        read_job(tmp_path)


# A host that lends its processors to the first one


@pytest.fixture
def second(here: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """This is the second host, and nobody listens on the first; the run that it waits for."""
    monkeypatch.setenv(PORT, "9")
    monkeypatch.setenv(JOIN_TIMEOUT_S, "0")
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "eth0")
    values = {STORAGE: str(here / "runs")}
    write_tree(here, "fire", hosts=("127.0.0.2", "127.0.0.3"), values=values, current=1)
    return Run(read_job(here).spec, RUN)


def test_a_host_that_does_not_reach_the_first_one_says_so(here: Path, second: Run) -> None:
    assert main(["train"]) == 5
    assert failure(here) == (
        "host '127.0.0.2' was not reached at port 9 within 0 s; look at its log, and whether the "
        "security groups of sagemaker.vpc let the hosts reach one another"
    )
    assert not (here / "runs").exists(), "two hosts do not train the same job twice"


def tell(run: Run, reason: str) -> None:
    """What the first host writes when its job fails."""
    with pytest.raises(PreflightError), end_is_told(run):
        raise PreflightError(reason)


def test_the_end_of_an_earlier_attempt_is_not_this_ones(here: Path, second: Run) -> None:
    tell(second, "no rows")
    assert main(["train"]) == 5
    assert failure(here).startswith("host '127.0.0.2' was not reached")


def test_a_job_that_fails_before_its_cluster_stands_fails_on_every_host(
    here: Path, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOIN_TIMEOUT_S, "60")
    tell(second, "no rows")  # an attempt before this one
    with ThreadPoolExecutor(1) as pool:
        telling = pool.submit(lambda: (time.sleep(0.5), tell(second, "no columns")))
        assert main(["train"]) == 3
        telling.result()
    assert failure(here) == "host '127.0.0.2' failed: no columns"


def test_a_host_that_is_asked_to_stop_while_it_waits_stops(
    here: Path, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOIN_TIMEOUT_S, "60")
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGTERM)))
            assert main(["train"]) == 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert not (here / "output/failure").exists()


# What is not as SageMaker writes it


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hyperparameters.json", "{", "hyperparameters.json: not written by SageMaker: Expecting"),
        ("hyperparameters.json", "[]", "a mapping is expected, not a list"),
        ("hyperparameters.json", "{}", f"the hyperparameter {SPEC_PARTS.format(0)} is missing"),
        (
            "hyperparameters.json",
            json.dumps({SPEC_PARTS.format(0): '{"workload": "fire"'}),
            "the hyperparameters emberline.spec.*: Expecting",
        ),
        (
            "hyperparameters.json",
            json.dumps({SPEC_PARTS.format(0): '{"workload": "smoke"}'}),
            "hyperparameters.json: workload: no workload 'smoke'; there is fire",
        ),
        ("resourceconfig.json", '{"hosts": ["a"]}', "current_host is not one of hosts"),
        ("resourceconfig.json", "{}", "current_host is not one of hosts"),
    ],
)
def test_what_is_not_sagemakers_is_a_failure_that_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    write_tree(here, "fire")
    (here / "input/config" / name).write_text(content, encoding="utf-8")
    assert main(["train"]) == 2
    assert message in failure(here)
    assert f"error: {failure(here)}" in capsys.readouterr().err


def test_without_a_tree_it_fails_and_says_what_is_missing(here: Path) -> None:
    assert main(["train"]) == 2
    assert "hyperparameters.json: not written by SageMaker: [Errno 2]" in failure(here)


def test_added_pictures_are_those_of_the_channel(here: Path) -> None:
    write_tree(here, "waste", "data.added=[s3://rows/a, new]", channels={"added_1": "s3://b/"})
    (here / "input/data/added_1/glass").mkdir(parents=True)
    job = read_job(here)
    spec: Any = _as_carried_out(job.spec, job.channels)
    assert [source.path for source in spec.data.added] == [
        "s3://rows/a", str(here / "input/data/added_1"),
    ]  # fmt: skip


def test_a_channel_that_stands_for_nothing_is_refused(here: Path) -> None:
    write_tree(here, "fire", channels={"weights": "s3://rows/"})
    (here / "input/data/weights").mkdir(parents=True)
    (here / "input/data/weights/a").write_bytes(b"1")
    assert main(["train"]) == 2
    assert failure(here).startswith("channel 'weights': name it data, for data.path; data_0, ")


def test_a_long_reason_is_cut_where_sagemaker_cuts_it(here: Path) -> None:
    write_tree(here, "fire")
    values = {SPEC_PARTS.format(0): json.dumps({"workload": "x" * 5000})}
    write(here / "input/config/hyperparameters.json", values)
    assert main(["train"]) == 2
    assert len(failure(here)) == 1024


def test_progress_says_what_a_reader_of_the_log_needs() -> None:
    ended = {"event": "member_ended", "member": "lstm", "status": "FAILED", "reason": "no memory"}
    assert progress_line(ended) == "[emberline] lstm FAILED (no memory):"
    resumed = {"event": "resumed", "member": "model", "epoch": 2, "batch": 0, "name": "x"}
    assert progress_line(resumed) == "[emberline] model goes on from epoch 2"
    assert progress_line({"event": "checkpoint", "epoch": 1}) is None


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(here, "fire")
    (here / "model").write_bytes(b"")
    assert main(["train"]) == 3
    assert failure(here) == (
        f"{here / 'model'}: the user {os.getuid()} may not write there; give it that folder, or "
        "build the image with --build-arg UID=0, for SageMaker's folders are root's"
    )
    shutil.rmtree(here / "output")
    (here / "output").write_bytes(b"")
    assert main(["train"]) == 3
    assert f"error: {here / 'output'}: the user" in capsys.readouterr().err


# The job itself, as a process


def rows(folder: Path, first: int = 0) -> None:
    """Readings of rooms: warm ones burn."""
    folder.mkdir(parents=True)
    lines = ["temperature,co2,fire,room"]
    for number in range(first, first + 600):
        burns = number // 10 % 3 == 0
        warmth = 20 + number * 7 % 13 + 8 * burns
        lines.append(f"{warmth},{400 + number * 11 % 97 + first},{int(burns)},{number // 10}")
    (folder / "readings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_a_job_on_a_channel_leaves_its_model_and_its_run(tmp_path: Path) -> None:
    base = tmp_path / "ml"
    write_tree(
        base,
        "fire",
        "data.path=s3://rows/fire/",
        "data.added=[s3://rows/a/, new.csv]",
        "data.label_column=fire",
        "data.group_column=room",
        *SMALL_FIRE[1:],
        channels={"data": "s3://rows/fire/", "added_0": "s3://a/", "added_1": "s3://rows/b/"},
    )
    rows(base / "input/data/data")
    rows(base / "input/data/added_0", 600)
    rows(base / "input/data/added_1", 1200)
    (base / "model").mkdir()
    (base / "model" / "left-by-another").write_bytes(b"")
    process = start(base)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert not (base / "output/failure").exists()

    run = Run.open(str(base / "checkpoints"), "fire", RUN)
    result = run.read_result()
    assert result is not None
    assert (result.status, result.model) == ("SUCCEEDED", None)
    assert run.spec.data.path == "s3://rows/fire/"  # as the user knows it
    assert result.data is not None
    assert result.data.num_added == 1200
    assert result.data.source == f"table:{base / 'input/data/data'}/**/*"
    assert "not registered, for MLFLOW_TRACKING_URI names no server" in stdout

    assert not (base / "model" / "left-by-another").exists()
    verify(base / "model", read_index(base / "model")["files"])

    for metric in metric_definitions(run.spec):  # what SageMaker reads in the log is what came out
        split, name = metric["Name"].split(":")
        found = re.findall(metric["Regex"], stdout)
        scores = result.members[0].metrics["val"] if split not in result.metrics else None
        expected = (scores or result.metrics[split])[name].value
        assert float(found[-1]) == pytest.approx(expected)


@pytest.mark.slow
def test_data_that_cannot_be_used_is_told_to_sagemaker(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        "fire",
        "data.path=s3://rows/fire/",
        "data.label_column=flames",
        *SMALL_FIRE[1:],
        channels={"data": "s3://rows/fire/"},
    )
    rows(tmp_path / "input/data/data")
    process = start(tmp_path)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 3
    assert "flames" in failure(tmp_path)
    assert f"error: {failure(tmp_path)}" in stderr


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_another_container_goes_on_from(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for base in (first, second):
        write_tree(base, "gcode", *SMALL_GCODE, "train.epochs=40", "resources.num_cpus=1")
    process = start(first)
    assert process.stdout is not None
    for line in process.stdout:
        if " epoch " in line:
            process.send_signal(signal.SIGTERM)
            break
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "a checkpoint is written" in stderr
    assert not (first / "output/failure").exists()
    assert not any((first / "model").glob("*"))

    # SageMaker brings back what was below the checkpoint's local path, and nothing else.
    folder = f"checkpoints/gcode/{RUN}"
    shutil.copytree(first / folder, second / folder)
    process = start(second)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "[emberline] model goes on from epoch" in stdout
    assert len(re.findall(r"model epoch \d+/40", stdout)) < 40
    index = read_index(second / "model")
    verify(second / "model", index["files"])
