"""What a Ray cluster may do to a job: refuse it, lose its driver, lose a node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ray_jobs.checks import Checklist
from ray_jobs.errors import RetryableError
from ray_jobs.events import read_events
from ray_jobs.result import JobResult
from ray_jobs.run import Run, flatten
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import Target, wait
from ray_jobs.targets.local import LocalTarget
from ray_jobs.targets.ray import RayTarget
from ray_jobs.targets.ray_spec import RaySpec
from tests.contract.conftest import RAY, REPOSITORY, Cluster, end, nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# One member ends early, and each takes what a node has.
JOB = (
    "data.samples=2000",
    "members={short: {family: lstm_classifier, epochs: 1}, "
    "long: {family: lstm_classifier, epochs: 40}}",
    "resources.num_cpus=2",
    "resources.cpus_per_member=1",
    "tracking.enabled=false",
)


def make_run(storage: Path, run_id: str) -> Run:
    return Run.create(load_spec("fire", overrides=JOB, storage=str(storage)), run_id)


def members(run: Run, event: str) -> list[str]:
    """The members that have started, or ended, in order."""
    events = read_events(run.storage, run.folder)
    return [e["member"] for e in events if e["event"] == f"member_{event}"]


def kill_when(found: Callable[[], psutil.Process | None], target: Target, run: Run) -> None:
    """Kill what is found as soon as it is there."""
    deadline = time.monotonic() + 120
    while (process := found()) is None:
        state = target.status(target.handle(run))
        assert not state.has_ended, state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    process.kill()


def finish(target: Target, run: Run, max_attempts: int = 1) -> JobResult:
    handle = target.handle(run)
    state = wait(target, handle, interval_s=0.2, max_attempts=max_attempts)
    assert state.status == "SUCCEEDED", (state, list(target.logs(handle)))
    return target.result(handle)


def assert_same(result: JobResult, expected: JobResult) -> None:
    """The same metrics with the same intervals, and the same fields of the result beside them."""
    found, wanted = (
        flatten(r.model_dump(mode="json", include={"metrics"}, exclude_none=True))
        for r in (result, expected)
    )
    assert len(wanted) > 10
    assert found == pytest.approx(wanted, rel=0, abs=1e-6)
    assert result.model_fields_set == expected.model_fields_set


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> JobResult:
    storage = tmp_path_factory.mktemp("undisturbed")
    target, run = LocalTarget(str(storage)), make_run(storage, "calm")
    target.submit(run)
    return finish(target, run)


@pytest.mark.parametrize(
    "variables",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    ],
    ids=["without", "wrong"],
)
def test_a_token_is_asked_for(cluster: Cluster, variables: dict[str, str]) -> None:
    program = (
        "from ray_jobs.targets.ray import RayTarget\n"
        "from ray_jobs.targets.ray_spec import RaySpec\n"
        f"RayTarget(RaySpec(address={cluster.address!r})).list()\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ray_jobs.errors.PreflightError: the Ray cluster at {cluster.address} refuses this user's "
        "token, or there is none; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
        "RAY_AUTH_TOKEN_PATH, to the cluster's"
    )


def test_a_cluster_that_is_ready_passes_its_checks(cluster: Cluster, tmp_path: Path) -> None:
    spec = load_spec("fire", storage=str(tmp_path))
    checklist: Checklist = cluster.target().check(spec)
    assert not checklist.failed
    assert len(checklist.checks) == 5


def test_rays_own_command_submits_a_job(cluster: Cluster, tmp_path: Path) -> None:
    words = [part for override in JOB[2:] for part in ("--set", override)]
    done = subprocess.run(
        [
            RAY, "job", "submit", f"--address={cluster.address}", f"--working-dir={REPOSITORY}",
            "--", "python", "-m", "ray_jobs.train", "--spec", "ray_jobs/configs/fire.yaml",
            "--storage", tmp_path, "--run-id", "plain", "--set", "data.samples=2000",
            "--set", "members=[logistic_regression]", *words,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = Run.open(str(tmp_path), "fire", "plain").read_result()
    assert result is not None
    assert result.status == "SUCCEEDED"
    assert '"run_id": "plain"' in done.stdout  # the log is followed


def test_a_job_that_loses_its_driver_goes_on_in_another_attempt(
    cluster: Cluster, tmp_path: Path, undisturbed: JobResult
) -> None:
    target, run = cluster.target(), make_run(tmp_path, "driver")
    handle = target.submit(run)

    def driver() -> psutil.Process | None:
        if not members(run, "ended"):
            return None
        for process in psutil.Process(cluster.head.pid).children(recursive=True):
            if process.cmdline()[1:3] == ["-m", "ray_jobs.train"]:
                return process
        return None

    kill_when(driver, target, run)
    ended = members(run, "ended")  # one, or both where they ended at nearly the same moment
    result = finish(target, run, max_attempts=2)
    assert target.status(handle).details["attempt"] == "2"
    assert [h for h in target.list() if h.run_id == "driver"] == [handle]
    started = members(run, "started")
    assert all(started.count(member) == 1 for member in ended)
    assert len(started) == 4 - len(ended)  # what had not ended, once more
    assert_same(result, undisturbed)


def test_a_job_that_loses_a_node_ends_with_the_same_metrics(
    cluster: Cluster, tmp_path: Path, undisturbed: JobResult
) -> None:
    target, run = cluster.target(), make_run(tmp_path, "node")
    target.submit(run)

    def on_second_node() -> psutil.Process | None:
        if len(members(run, "started")) < 2:
            return None
        for process in psutil.Process(cluster.second.pid).children(recursive=True):
            if "_train_member" in " ".join(process.cmdline()):
                return process
        return None

    kill_when(on_second_node, target, run)
    end(cluster.second)
    result = finish(target, run)
    assert len(members(run, "started")) == 3  # one of them twice
    assert_same(result, undisturbed)


def test_a_job_that_loses_its_head_goes_on_when_there_is_a_new_one(
    cluster: Cluster, tmp_path: Path, undisturbed: JobResult
) -> None:
    with nodes() as place:  # with the token of the other cluster
        head = place.start_head("a")
        target = RayTarget(RaySpec(address=place.address, working_dir=str(REPOSITORY)))
        run = make_run(tmp_path, "head")
        target.submit(run)
        deadline = time.monotonic() + 120
        while not members(run, "ended"):
            assert not target.status(target.handle(run)).has_ended
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ended = members(run, "ended")
        end(head)
        with pytest.raises(RetryableError, match="does not answer"):
            target.status(target.handle(run))
        place.start_head("b")
        result = finish(target, run, max_attempts=2)
    started = members(run, "started")
    assert all(started.count(member) == 1 for member in ended)
    assert_same(result, undisturbed)
