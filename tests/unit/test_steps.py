from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import part as part_job
from ray_jobs import steps
from ray_jobs.errors import (
    EmberlineError,
    JobFailed,
    PreflightError,
    RetryableError,
    SpecError,
    Stopped,
)
from ray_jobs.parts import end_part, fail_part, member_of, read_outcome
from ray_jobs.result import MemberResult
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import JobState
from tests.kubernetes_emulator import NAMESPACE, Cluster, cluster

PART = "member-random_forest"
RESULT = MemberResult(name="random_forest", family="random_forest", status="SUCCEEDED")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    overrides = ["kubeflow.train_on=rayjob", "rayjob.image=emberline:1", "rayjob.stop_wait_s=1"]
    spec = load_spec("fire", overrides=overrides, storage=str(tmp_path / "runs"))
    return Run.create(spec, "night")


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes") as started:
        monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig()))
        monkeypatch.setenv("KFP_POD_NAME", "step-1")
        monkeypatch.setenv("NAMESPACE", NAMESPACE)
        yield started


def later(kubernetes: Cluster, run: Run, deployment: str, job: str, **fields: Any) -> None:
    """Give the step's RayJob this end, once it is there; after what the test has to do then."""

    def end() -> None:
        while not (names := kubernetes.names("rayjobs")):
            time.sleep(0.01)
        if job == "SUCCEEDED":
            end_part(run, PART, datetime.now(UTC), RESULT)
        found = kubernetes.get("rayjobs", names[0])
        assert found is not None
        found["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **fields}

    threading.Thread(target=end, daemon=True).start()


def test_the_result_is_that_of_the_job(kubernetes: Cluster, run: Run) -> None:
    later(kubernetes, run, "Complete", "SUCCEEDED")
    assert steps.train_member(run, "random_forest") == RESULT
    (name,) = kubernetes.names("rayjobs")
    assert name.startswith("fire-night-member-random-fo")
    made = kubernetes.requests.count(f"POST /apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs?"
                                     "fieldValidation=Strict")  # fmt: skip
    assert steps.train_member(run, "random_forest") == RESULT  # again: it is done
    assert made == sum(line.startswith("POST") for line in kubernetes.requests) == 1


def test_a_job_that_fails_fails_its_step(kubernetes: Cluster, run: Run) -> None:
    message = "Job entrypoint command failed with exit code 5, last\nerror: no network"
    later(kubernetes, run, "Failed", "FAILED", reason="AppFailed", message=message)
    with pytest.raises(RetryableError, match="AppFailed: no network"):
        steps.train_member(run, "random_forest")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_job_and_ends_the_step(
    kubernetes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals,
    code: int,
) -> None:  # fmt: skip
    delete = kubernetes.delete_rayjob

    def interrupt() -> None:
        while not kubernetes.names("rayjobs"):
            time.sleep(0.01)
        signal.raise_signal(number)

    def interrupt_again(name: str) -> None:
        signal.raise_signal(number)  # a second one, in the middle of the stop, changes nothing
        delete(name)

    monkeypatch.setattr(kubernetes, "delete_rayjob", interrupt_again)
    threading.Thread(target=interrupt, daemon=True).start()
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        steps.train_member(run, "random_forest")
    assert ended.value.code == code
    assert kubernetes.names("rayjobs") == []
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_service_that_does_not_answer_leaves_it_to_the_reaper(
    kubernetes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(steps, "_NUM_TRIES", 0)

    def interrupt() -> None:
        while not kubernetes.names("rayjobs"):
            time.sleep(0.01)
        kubernetes.code = 503
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit):
        steps.train_member(run, "random_forest")
    told = capsys.readouterr().err
    assert re.search(r"not stopped: the Kubernetes API .* cannot do it now .*; the reaper", told)
    assert len(kubernetes.names("rayjobs")) == 1


@pytest.mark.parametrize(
    ("left", "state", "kind", "code"),
    [
        (None, JobState("STOPPED", "it was stopped"), Stopped, 130),
        (None, JobState("FAILED", "x", may_be_retried=True), RetryableError, 5),
        (None, JobState("FAILED", "x", details={"exit_code": "3"}), JobFailed, 3),
        (None, JobState("FAILED", "x", details={"exit_code": "1"}), JobFailed, 4),
        (PreflightError("x"), JobState("FAILED", "x"), JobFailed, 3),
        (JobFailed("x"), JobState("FAILED", "x", details={"exit_code": "2"}), JobFailed, 4),
    ],
)
def test_exit_codes_are_those_of_the_job(
    run: Run, left: EmberlineError | None, state: JobState, kind: type[EmberlineError], code: int
) -> None:
    if left is not None:
        fail_part(run, PART, datetime.now(UTC), left)
    with pytest.raises(kind) as raised:
        steps._outcome_of(run, PART, state)
    assert raised.value.exit_code == code


def test_the_step_trains_itself_unless_told_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert steps._place(run, PART) is not None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # the local runner's, for its steps
    assert steps._place(run, PART) is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert steps._place(Run(run.spec.replaced({"kubeflow.train_on": "step"}), "n"), PART) is None
    with pytest.raises(SpecError, match=r"ray\.address is required"):
        steps._place(Run(run.spec.replaced({"kubeflow.train_on": "ray"}), "n"), PART)


def test_a_rayjob_has_the_steps_image_unless_told_otherwise(kubernetes: Cluster, run: Run) -> None:
    steps_own = {"kubeflow.image": "emberline:steps"}
    for image, expected in ((None, "emberline:steps"), ("emberline:gpu", "emberline:gpu")):
        spec = run.spec.replaced({**steps_own, "rayjob.image": image})
        run_there = Run(spec, expected.replace(":", "-"))
        run_there.write_spec()
        place = steps._place(run_there, PART)
        assert place is not None
        name = place.submit(run_there).name
        found = kubernetes.get("rayjobs", name)
        assert found is not None
        (container,) = found["spec"]["submitterPodTemplate"]["spec"]["containers"]
        assert container["image"] == expected


@pytest.mark.parametrize("part", ["../../x", "member-", "member-mlp", "random_forest", ""])
def test_a_part_that_is_none_is_named(
    run: Run, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part_job.main(["--run", run.uri, "--part", part]) == 2
    assert f"no part {part!r} of the run; there is train, sweep, member-random_forest, " in (
        capsys.readouterr().err
    )
    assert run.storage.list(run.path("parts")) == []


def test_a_member_is_known_by_its_part(run: Run) -> None:
    assert member_of(run, PART) == "random_forest"
    assert member_of(run, "train") is None


def test_an_outcome_that_cannot_be_read_says_so(run: Run) -> None:
    assert read_outcome(run, PART) is None
    run.storage.write_text(run.path("parts", f"{PART}.json"), '{"status": "SUCCEEDED"}')
    with pytest.raises(ValueError, match=r"member-random_forest\.json is not an outcome of this"):
        read_outcome(run, PART)


def test_a_part_that_fails_leaves_why(run: Run) -> None:
    """Its data were never prepared."""
    assert part_job.main(["--run", run.uri, "--part", PART, "--num-cpus", "1"]) != 0
    outcome = read_outcome(run, PART)
    assert outcome is not None
    assert (outcome.status, outcome.result) == ("FAILED", None)
    assert outcome.reason
