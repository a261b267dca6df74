"""Services that fail for a while cost a run nothing; those that are gone end it so that the same
command goes on from there."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_jobs import ray_runtime
from ray_jobs.ensemble import TEST
from ray_jobs.errors import RetryableError
from ray_jobs.register import register
from ray_jobs.result import Metrics
from ray_jobs.run import Run
from ray_jobs.sections import ResourceSpec
from ray_jobs.spec import CONFIGS, load_spec
from ray_jobs.targets.base import JobState, wait
from ray_jobs.targets.sagemaker import jobs as sagemaker_jobs
from ray_jobs.targets.sagemaker.aws import Aws
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.target import SageMakerTarget
from tests.chaos.fire_job import (
    JOB,
    MEMBERS,
    UNTRACKED,
    assert_to_be_retried,
    assert_whole,
    finished_members,
    num_started,
    options,
    result_of,
    run_here,
    run_job,
    upon,
)
from tests.sagemaker_emulator.aws import AWS
from tests.sagemaker_emulator.proxy import Call, Proxy

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

# Requests to S3 in a run's three parts: its data, a member's checkpoints, and what comes last.
DATA, STEPS, END = r"/datasets/", r"/lstm_classifier/steps-", r"/calm/result\.json\?uploads"
NUM_REQUESTS = 230  # at least, of an undisturbed run to S3


@pytest.fixture(scope="module")
def unregistered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nothing disturbed until there was no MLflow to take it."""
    folder = tmp_path_factory.mktemp("unregistered")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        patch.setenv("MLFLOW_TRACKING_URI", url)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        spec = ["--spec", str(CONFIGS / "fire.yaml")]
        ended = run_job("ray_jobs.train", *spec, *options("runs", *JOB), cwd=folder)
    assert_to_be_retried(ended, f"MLflow at {url} did not take the run")
    return folder


@pytest.fixture(scope="module")
def undisturbed(unregistered: Path) -> dict[str, Metrics]:
    """The metrics of an undisturbed run."""
    result = Run.open(str(unregistered / "runs"), "fire", "calm").read_result()
    assert result is not None
    assert result.status == "FAILED"
    assert set(result.metrics) == {"val", "test"}
    return result.metrics


# S3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each request to a storage that is gone takes a quarter of a minute."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def ray_here(aws: AWS) -> Iterator[None]:
    """A Ray whose workers use the account, as this process does now."""
    with ray_runtime.session(ResourceSpec(num_cpus=2)):
        yield


@pytest.mark.usefixtures("impatient", "ray_here")
def test_s3_that_is_gone_ends_a_job_and_the_same_command_goes_on(
    aws: AWS, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Metrics]
) -> None:
    rng = random.Random(4)
    for part in range(4):
        number = NUM_REQUESTS * part // 4 + rng.randint(1, NUM_REQUESTS // 4)
        storage = f"s3://{aws.bucket}/at-{number}"
        with monkeypatch.context() as patch:
            left = upon(aws.proxy, patch, {"": number}, aws.proxy.s3_down)
            cut_off = run_here(storage, *UNTRACKED)
            assert left[""] <= 0, number
        assert_to_be_retried(cut_off, "does not answer|could be written")
        aws.proxy.s3_down(False)
        run = Run(load_spec("fire", overrides=UNTRACKED, storage=storage), "calm")
        finished = finished_members(run)
        assert_whole(run, result_of(run_here(storage, *UNTRACKED)), undisturbed)
        assert [num_started(run, member) for member in finished] == [1] * len(finished)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("seed", [1, 2])
def test_s3_that_refuses_three_requests_at_three_moments_costs_a_job_nothing(
    aws: AWS, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Metrics], seed: int
) -> None:
    rng, storage = random.Random(seed), f"s3://{aws.bucket}/runs"
    moments = {DATA: rng.randint(1, 12), STEPS: rng.randint(1, 12), END: 1}
    left = upon(aws.proxy, monkeypatch, moments, partial(aws.proxy.s3_fail, 3))
    result = result_of(run_here(storage, *UNTRACKED))
    assert max(left.values()) <= 0, left
    assert_whole(Run.open(storage, "fire", "calm"), result, undisturbed)


def test_a_pipeline_outlasts_three_refusals_and_passes_a_steps_exit_code_on(
    aws: AWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Metrics]
) -> None:
    rng, storage = random.Random(3), f"s3://{aws.bucket}/runs"
    words = ("pipelines.cli", "run", "fire", "--json", *options(storage, *UNTRACKED))
    answer, gone = aws.proxy.interception, rng.randint(1, 12)

    def refuse(call: Call) -> tuple[int, bytes] | None:  # but for one member's step, S3 answers
        is_one = re.search(STEPS, call.path) is not None
        return (503, b"<Error><Code>SlowDown</Code></Error>") if is_one else answer(call)

    with monkeypatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        disturb = partial(patch.setattr, aws.proxy, "interception", refuse)
        upon(aws.proxy, patch, {STEPS: gone}, disturb)
        cut_off = run_job(*words, cwd=tmp_path)
    assert_to_be_retried(cut_off, "could be written")
    run = Run.open(storage, "fire", "calm")
    assert finished_members(run) == ["logistic_regression"]

    left = upon(aws.proxy, monkeypatch, {STEPS: gone, END: 1}, partial(aws.proxy.s3_fail, 3))
    assert_whole(run, result_of(run_job(*words, cwd=tmp_path)), undisturbed)
    assert max(left.values()) <= 0, left
    assert num_started(run, "logistic_regression") == 1


# MLflow


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server in a process of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
                "--artifacts-destination", str(folder / "artifacts"),
            ],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        family = [server, *psutil.Process(server.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def mlflow_proxy(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What jobs take for the server. It takes requests without a signature for those of S3, so
    MLflow's are made to fail as S3's are."""
    proxy = Proxy(mlflow_url)
    with proxy.serving():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # no pause of 2 to 16 s
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        yield proxy


def test_a_run_that_mlflow_never_took_is_only_registered_later(
    unregistered: Path,
    undisturbed: dict[str, Metrics],
    tmp_path: Path,
    mlflow_proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(unregistered, tmp_path, dirs_exist_ok=True)
    run = Run.open(str(tmp_path / "runs"), "fire", "calm")
    tested = run.storage.local(run.path(TEST))
    tested_at = tested.stat().st_mtime_ns
    moment = {"": random.Random(7).randint(1, 30)}
    upon(mlflow_proxy, monkeypatch, moment, partial(mlflow_proxy.s3_fail, 3))
    monkeypatch.chdir(tmp_path)
    result = result_of(run_here("runs", *JOB))
    assert result.model is not None
    assert_whole(run, result, undisturbed)
    assert [num_started(run, name) for name in MEMBERS] == [1, 1]
    assert tested.stat().st_mtime_ns == tested_at  # the test split was not read again


@pytest.mark.parametrize(("seed", "is_gone"), [(8, False), (9, False), (10, True), (11, True)])
def test_mlflow_that_fails_within_a_registration(
    unregistered: Path,
    tmp_path: Path,
    mlflow_proxy: Proxy,
    mlflow_url: str,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    is_gone: bool,
) -> None:
    """For three requests it goes unnoticed; else another attempt leaves one model and one run."""
    shutil.copytree(unregistered, tmp_path, dirs_exist_ok=True)
    opened = Run.open(str(tmp_path / "runs"), "fire", "calm")
    tracking = opened.spec.tracking.model_copy(
        update={"model_name": f"fire-{seed}", "experiment": f"fire-{seed}"}
    )
    run = Run(opened.spec.model_copy(update={"tracking": tracking}), "calm")
    act = mlflow_proxy.s3_down if is_gone else partial(mlflow_proxy.s3_fail, 3, 500)
    left = upon(mlflow_proxy, monkeypatch, {"": random.Random(seed).randint(4, 40)}, act)
    if is_gone:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with pytest.raises(RetryableError, match=r"MLflow at .* did not take the run"):
            register(run)
        mlflow_proxy.s3_down(False)
    result = register(run)
    assert left[""] <= 0
    assert result.status == "SUCCEEDED"
    assert result.model is not None

    from mlflow import MlflowClient

    client = MlflowClient(mlflow_url)
    (version,) = client.search_model_versions(f"name = 'fire-{seed}'")
    assert client.get_registered_model(version.name).aliases == {"challenger": version.version}
    assert version.run_id == result.model.mlflow_run_id
    experiment = client.get_experiment_by_name(f"fire-{seed}")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert [found.info.status for found in parents].count("FINISHED") == 1
    assert "RUNNING" not in {found.info.status for found in runs}
    assert "report.html" in {file.path for file in client.list_artifacts(version.run_id)}


# SageMaker

ASLEEP = ["python", "-c", "import time; print('at work', flush=True); time.sleep(600)"]


@pytest.fixture
def there(aws: AWS, monkeypatch: pytest.MonkeyPatch) -> SageMakerTarget:
    """The target, whose pauses between attempts take no time: else half a minute for each call."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    return SageMakerTarget(SageMakerSpec(poll_interval_s=0.2, stop_wait_s=60))


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job's container goes on until it is told to stop, and learns nothing."""

    def create_asleep(aws: Aws, request: Mapping[str, Any]) -> None:
        algorithm = request["AlgorithmSpecification"] | {"ContainerEntrypoint": ASLEEP}
        sagemaker_jobs.create(aws, {**request, "AlgorithmSpecification": algorithm})

    monkeypatch.setattr("ray_jobs.targets.sagemaker.target.create", create_asleep)


def make_run(aws: AWS) -> Run:
    account = (f"sagemaker.role_arn={aws.role_arn}", f"sagemaker.image_uri={aws.image_uri}")
    spec = load_spec("fire", overrides=[*UNTRACKED, *account], storage=f"s3://{aws.bucket}/runs")
    return Run.create(spec, "calm")


def test_a_sagemaker_that_throttles_every_call_costs_nothing(
    aws: AWS, there: SageMakerTarget, undisturbed: dict[str, Metrics]
) -> None:
    run = make_run(aws)
    aws.emulator.throttle(3, "CreateTrainingJob")
    handle = there.submit(run)
    rng = random.Random(12)

    def disturb(state: JobState | None) -> None:
        # None: botocore has spent what it may retry in all, and the next look is another attempt.
        if state is not None and not state.has_ended:
            rng.choice([partial(aws.emulator.throttle, 3), partial(aws.emulator.fail, 3)])()

    state = wait(there, handle, interval_s=0.5, on_poll=disturb)
    assert state.status == "SUCCEEDED", (state, list(there.logs(handle)))
    assert there.result(handle).metrics == undisturbed
    assert list(aws.emulator.jobs) == ["fire-calm"]


@pytest.mark.usefixtures("asleep")
def test_a_sagemaker_that_is_gone_is_taken_up_where_it_was_left(
    aws: AWS, there: SageMakerTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, always = make_run(aws), 1_000_000
    handle = there.handle(run)
    for act in (
        lambda: there.submit(run),
        lambda: wait(there, handle, interval_s=0.1, patience_s=0.5),
        lambda: there.stop(handle),
    ):
        for trouble in (aws.emulator.throttle, aws.emulator.fail):
            trouble(always)
            with pytest.raises(RetryableError, match=r"AWS does not carry out .* now"):
                act()
            trouble(0)
            assert there.submit(run) == handle  # the first begins; all others find it at work
            aws.emulator.wait_for_log("fire-calm", "at work")
    assert list(aws.emulator.jobs) == ["fire-calm"]
    there.stop(handle)
    assert there.status(handle).status == "STOPPED"


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize("is_s3", [False, True])
def test_a_job_whose_making_is_not_told_is_attached_to(
    aws: AWS, there: SageMakerTarget, monkeypatch: pytest.MonkeyPatch, is_s3: bool
) -> None:
    """The service makes it, but its answer is lost; or S3 takes no note of it."""
    run = make_run(aws)
    if is_s3:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        run = Run(run.spec, run.run_id)  # with a storage of its own
        upon(aws.proxy, monkeypatch, {r"/submissions/-\.1\.1": 1}, aws.proxy.s3_down)
        with pytest.raises(RetryableError, match="does not answer"):
            there.submit(run)
        aws.proxy.s3_down(False)
    else:
        handle_request, lost = aws.emulator.handle, []

        def lose(operation: str, body: bytes) -> tuple[int, bytes]:
            answer = handle_request(operation, body)
            if operation == "CreateTrainingJob" and not lost:
                lost.append(answer)
                return 503, b"{}"
            return answer

        monkeypatch.setattr(aws.emulator, "handle", lose)
    handle = there.submit(run)
    assert list(aws.emulator.jobs) == ["fire-calm"]
    assert there.status(handle).is_submitted
    there.stop(handle)
