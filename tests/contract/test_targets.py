"""One contract for every target: what `emberline run/status/logs/stop` rely on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from ray_jobs.errors import SpecError
from ray_jobs.events import read_events
from ray_jobs.run import RESULT, Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import Handle, JobState, Target, wait
from ray_jobs.targets.local import LocalTarget
from ray_jobs.targets.rayjob import RayJobTarget
from ray_jobs.targets.rayjob_spec import RayJobSpec
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.target import SageMakerTarget
from tests.kubernetes_emulator import cluster
from tests.sagemaker_emulator.aws import open_account

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

JOB = ("data.samples=2000", "members=[logistic_regression]", "tracking.enabled=false")
LONG_JOB = (
    "data.samples=2000",
    "members={lstm_classifier: {epochs: 2000}}",
    "tracking.enabled=false",
)


@dataclass(frozen=True)
class Place:
    """A target, and the storage root that it and this process share."""

    target: Target
    storage: str
    overrides: tuple[str, ...] = ()  # what the target needs to know

    def run(self, run_id: str, *overrides: str) -> Run:
        spec = load_spec("fire", overrides=[*self.overrides, *overrides], storage=self.storage)
        return Run.create(spec, run_id)

    def finish(self, handle: Handle) -> JobState:
        return wait(self.target, handle, interval_s=0.2)

    def seen(self, run: Run, event: str) -> int:
        return sum(e["event"] == event for e in read_events(run.storage, run.folder))


@pytest.fixture(scope="module", params=["local", "ray", "rayjob", "sagemaker"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "local":
        yield Place(LocalTarget(str(folder)), str(folder))
    elif request.param == "rayjob":
        with (
            cluster(tmp_path_factory.mktemp("kubernetes"), runs=True) as kubernetes,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("KUBECONFIG", str(kubernetes.kubeconfig()))
            patch.delenv("RAY_ADDRESS", raising=False)
            settings = RayJobSpec(image="emberline:test", num_retries=1, stop_wait_s=30)
            yield Place(RayJobTarget(settings), str(folder))
    elif request.param == "ray":
        yield Place(request.getfixturevalue("cluster").target(), str(folder))
    else:
        with (
            open_account(folder, request.getfixturevalue("moto")) as account,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in account.environment.items():
                patch.setenv(name, value)
            yield Place(
                SageMakerTarget(SageMakerSpec(poll_interval_s=0.2)),
                f"s3://{account.bucket}/contract",
                (
                    f"sagemaker.role_arn={account.role_arn}",
                    f"sagemaker.image_uri={account.image_uri}",
                ),
            )


@pytest.fixture(scope="module")
def done(place: Place) -> tuple[Run, Handle]:
    """A run that three have submitted at once, and that has ended well."""
    run = place.run("done", *JOB)
    with ThreadPoolExecutor(3) as pool:
        handle, *others = pool.map(place.target.submit, [run] * 3)
    assert others == [handle] * 2
    state = place.finish(handle)
    assert state.status == "SUCCEEDED", (state, list(place.target.logs(handle)))
    return run, handle


def test_a_submitted_run_ends_with_its_result(place: Place, done: tuple[Run, Handle]) -> None:
    run, handle = done
    result = place.target.result(handle)
    assert result.status == "SUCCEEDED"
    assert result == run.read_result()
    assert set(result.metrics) == {"val", "test"}
    state = place.target.status(handle)
    assert state.started_at is not None
    assert state.ended_at is not None
    assert state.started_at < state.ended_at


def test_a_run_submitted_again_is_attached_to(place: Place, done: tuple[Run, Handle]) -> None:
    run, handle = done
    assert place.target.submit(run) == handle
    assert place.finish(handle).status == "SUCCEEDED"
    assert place.seen(run, "member_started") == 1


def test_the_log_is_there(place: Place, done: tuple[Run, Handle]) -> None:
    log = list(place.target.logs(done[1]))
    assert any('"run_id": "done"' in line for line in log)
    assert not any("\n" in line for line in log)
    assert list(place.target.logs(done[1], follow=True)) == log


def test_the_list_has_what_was_submitted(place: Place, done: tuple[Run, Handle]) -> None:
    assert done[1] in place.target.list()


def test_a_failed_job_says_why(place: Place) -> None:
    path = f"{place.storage}/missing.csv"
    run = place.run("failed", f"data.path={path}", "tracking.enabled=false")
    handle = place.target.submit(run)
    state = place.finish(handle)
    assert state.status == "FAILED"
    assert state.reason is not None
    assert "missing.csv" in state.reason
    assert not state.may_be_retried
    result = place.target.result(handle)
    assert (result.status, result.reason, result.metrics) == ("FAILED", state.reason, {})


@pytest.mark.parametrize("content", [b"", b"{}", b'{"status": "SUCCEEDED", "metrics": {"test"'])
def test_a_malformed_result_is_a_failure(
    place: Place, done: tuple[Run, Handle], content: bytes
) -> None:
    run, handle = done
    path = run.path(RESULT)
    kept = run.storage.read_bytes(path)
    run.storage.write_bytes(path, content)
    try:
        state, result = place.finish(handle), place.target.result(handle)
    finally:
        run.storage.write_bytes(path, kept)
    assert state.status == result.status == "FAILED"
    assert state.reason is not None
    assert "is not a result of this version" in state.reason
    assert result.reason == state.reason
    assert result.metrics == {}


def test_a_stopped_run_ends_and_is_taken_up_by_another_submission(place: Place) -> None:
    run = place.run("stopped", *LONG_JOB)
    handle = place.target.submit(run)
    log = place.target.logs(handle, follow=True)
    deadline = time.monotonic() + 90
    while not place.seen(run, "epoch"):
        assert time.monotonic() < deadline, list(place.target.logs(handle))
        time.sleep(0.1)
    assert place.target.status(handle).status == "RUNNING"
    running = place.target.result(handle)
    assert (running.status, running.metrics) == ("RUNNING", {})
    place.target.stop(handle)
    assert place.target.status(handle).status == "STOPPED"
    assert place.target.result(handle).status == "STOPPED"
    list(log)  # it ends with the job
    place.target.stop(handle)  # a second one changes nothing
    place.target.submit(run)
    assert place.target.status(handle).status in ("PENDING", "RUNNING")
    place.target.stop(handle)
    assert place.target.status(handle).status == "STOPPED"


def test_a_run_whose_folder_is_gone_is_named(place: Place) -> None:
    run = place.run("gone", *JOB)
    handle = place.target.handle(run)
    run.storage.delete_folder(run.folder)
    with pytest.raises(SpecError, match="no run 'gone' of 'fire' under"):
        place.target.status(handle)
    with pytest.raises(SpecError, match="no run 'other' of 'fire' under"):
        place.target.status(replace(handle, run_id="other"))
