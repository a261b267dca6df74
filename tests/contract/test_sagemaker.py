"""What SageMaker may do to a run: take its capacity back, lose it, answer nonsense."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import JobFailed, PreflightError, RetryableError
from ray_jobs.events import read_events
from ray_jobs.result import JobResult
from ray_jobs.run import RESULT, Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import Handle, JobState, wait
from ray_jobs.targets.local import LocalTarget
from ray_jobs.targets.names import sagemaker_name
from ray_jobs.targets.sagemaker.archive import ArchiveRefused
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.target import SageMakerTarget
from tests.conftest import SMALL_GCODE
from tests.sagemaker_emulator.aws import AWS

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = (
    "data.samples=2000",
    "members=[logistic_regression]",
    "resources.num_cpus=1",
    "tracking.enabled=false",
)
NETWORK = (
    *SMALL_GCODE,
    "train.epochs=40",
    "train.patience=40",
    "resources.num_cpus=1",
    "tracking.enabled=false",
)
NAME = "fire-night"


@pytest.fixture
def there(aws: AWS) -> SageMakerTarget:
    return SageMakerTarget(SageMakerSpec(poll_interval_s=0.2))


def make_run(
    aws: AWS,
    *overrides: str,
    workload: str = "fire",
    run_id: str = "night",
    root: str = "team",
) -> Run:
    account = (f"sagemaker.role_arn={aws.role_arn}", f"sagemaker.image_uri={aws.image_uri}")
    storage = f"s3://{aws.bucket}/{root}"
    spec = load_spec(workload, overrides=[*account, *overrides], storage=storage)
    return Run.create(spec, run_id)


def finish(there: SageMakerTarget, handle: Handle) -> JobResult:
    state = wait(there, handle, interval_s=0.2)
    assert state.status == "SUCCEEDED", (state, list(there.logs(handle)))
    return there.result(handle)


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(run.storage, run.folder) if e["event"] == kind]


def test_a_spot_interruption_changes_nothing_but_the_time(
    aws: AWS, there: SageMakerTarget, tmp_path: Path
) -> None:
    here = LocalTarget(str(tmp_path))
    spec = load_spec("gcode", overrides=NETWORK, storage=str(tmp_path))
    calm = here.submit(Run.create(spec, "calm"))
    run = make_run(aws, *NETWORK, "sagemaker.spot=true", workload="gcode")
    assert wait(here, calm, interval_s=0.2).status == "SUCCEEDED"
    handle = there.submit(run)
    aws.emulator.wait_for_log(handle.name, "epoch 1/40")
    aws.emulator.interrupt(handle.name)
    result = finish(there, handle)
    details = there.status(handle).details
    assert details["interruptions"] == "1"
    assert details["spot savings"]
    assert len(events(run, "resumed")) == 1
    (member,), expected = result.members, here.result(calm)
    assert "weights.safetensors" in member.digests
    assert member.digests == expected.members[0].digests
    assert result.metrics == expected.metrics


def _without_status(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "TrainingJobStatus"}


@pytest.mark.parametrize(
    ("mutate", "fault"),
    [
        (_without_status, "TrainingJobStatus: Field required"),
        (lambda answer: answer | {"TrainingJobStatus": "Dreaming"}, "unknown status 'Dreaming'"),
        (lambda answer: answer | {"TrainingJobName": "other"}, "it is of the job 'other'"),
        (lambda answer: answer | {"CreationTime": "soon"}, "the answer: Input should be"),
        (lambda answer: answer | {"BillableTimeInSeconds": "9"}, "BillableTimeInSeconds: Input"),
        (lambda answer: answer | {"SecondaryStatusTransitions": 7}, "the answer: Input should be"),
        (lambda answer: b"<html>", "TrainingJobName: Field required"),
        (lambda answer: b"[]", "the answer: Input should be"),
    ],
)
@pytest.mark.usefixtures("patient")
def test_a_description_that_cannot_be_read_is_a_failure_that_says_so(
    aws: AWS, there: SageMakerTarget, mutate: Callable[[dict[str, Any]], Any], fault: str
) -> None:
    run = make_run(aws, *JOB)
    handle = there.submit(run)
    aws.emulator.malform(mutate)
    state = there.status(handle)
    assert (state.status, state.is_due, state.may_be_retried) == ("FAILED", False, False)
    assert str(state.reason).startswith(f"SageMaker's description of {NAME!r} cannot be read: ")
    assert fault in str(state.reason)
    result = there.result(handle)
    assert (result.status, result.reason, result.metrics) == ("FAILED", state.reason, {})
    with pytest.raises(RetryableError, match="whether it trains is not known: try again"):
        there.submit(run)  # a second job beside one that may well be alive
    aws.emulator.malform(None)
    assert there.status(handle).status in ("PENDING", "RUNNING")
    assert list(aws.emulator.jobs) == [NAME]
    there.stop(handle)
    assert there.status(handle).status == "STOPPED"


PATIENT = ["python", "-c", "import time; print('at work', flush=True); time.sleep(600)"]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job's container goes on until it is told to stop, and learns nothing."""
    from ray_jobs.targets.sagemaker import target as sagemaker
    from ray_jobs.targets.sagemaker.jobs import create

    def create_patient(aws: Any, request: dict[str, Any]) -> None:
        algorithm = request["AlgorithmSpecification"] | {"ContainerEntrypoint": PATIENT}
        create(aws, request | {"AlgorithmSpecification": algorithm})

    monkeypatch.setattr(sagemaker, "create", create_patient)


@pytest.mark.usefixtures("patient")
def test_a_job_that_was_deleted_is_a_failure_and_the_next_attempt_has_a_name_of_its_own(
    aws: AWS,
    there: SageMakerTarget,
) -> None:
    run = make_run(aws, *JOB)
    handle = there.submit(run)
    aws.emulator.wait_for_log(NAME, "at work")
    aws.emulator.delete(NAME)
    state = there.status(handle)
    assert (state.status, state.may_be_retried) == ("FAILED", False)
    assert state.reason == (
        f"SageMaker has no training job {NAME!r}: it was deleted, or is in another region"
    )
    result = there.result(handle)
    assert (result.status, result.reason, result.metrics) == ("FAILED", state.reason, {})
    assert there.submit(run) == handle
    assert list(aws.emulator.jobs) == [sagemaker_name("fire", "night", 2)]
    assert there.list() == [handle]
    there.stop(handle)


def test_what_becomes_of_a_run_that_ended_well(
    aws: AWS, there: SageMakerTarget, tmp_path: Path
) -> None:
    run = make_run(aws, *JOB)
    aws.emulator.throttle(2)
    aws.proxy.s3_fail(3)
    handle = there.submit(run)
    result = finish(there, handle)
    state = there.status(handle)
    assert state.details["val:f1"] == f"{result.metrics['val']['f1'].value:.6g}"
    assert state.details["cost"].split()[1] == "USD"

    # No metric is made up where the service names none.
    aws.emulator.malform(
        lambda answer: {k: v for k, v in answer.items() if k != "FinalMetricDataList"}
    )
    assert there.status(handle).status == "SUCCEEDED"
    assert not [name for name in there.status(handle).details if ":" in name]
    aws.emulator.malform(None)

    there.fetch_model(handle, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "bundle.json").read_bytes())
    assert "members" in json.dumps(index)
    key = f"team/fire/night/sagemaker/{NAME}/output/model.tar.gz"
    for number, member in enumerate(HOSTILE):
        aws.client("s3").put_object(Bucket=aws.bucket, Key=key, Body=_archive(member))
        with pytest.raises(ArchiveRefused, match=r"model\.tar\.gz: "):
            there.fetch_model(handle, tmp_path / "hostile" / str(number))
    aws.client("s3").put_object(Bucket=aws.bucket, Key=key, Body=b"no archive")
    with pytest.raises(ArchiveRefused, match=r"not a whole \.tar\.gz"):
        there.fetch_model(handle, tmp_path / "hostile" / "damaged")
    assert not any((tmp_path / "hostile").rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile", "model", "sagemaker"]

    stored = run.storage.read_bytes(run.path(RESULT))
    run.storage.delete(run.path(RESULT))
    state = there.status(handle)
    assert state.status == "FAILED"
    assert "SageMaker has completed the job, but it left no result in s3://" in str(state.reason)
    assert there.result(handle).metrics == {}
    with pytest.raises(JobFailed, match=r"has no model\.tar\.gz: it is FAILED"):
        there.fetch_model(handle, tmp_path / "none")

    run.storage.write_bytes(run.path(RESULT), stored)
    aws.emulator.delete(NAME)  # what is done stays done
    assert there.status(handle).status == "SUCCEEDED"
    assert there.submit(run) == handle
    assert not aws.emulator.jobs


HOSTILE = [
    ("../escaped", tarfile.REGTYPE, ""),
    ("/escaped", tarfile.REGTYPE, ""),
    ("link", tarfile.SYMTYPE, "../../escaped"),
    ("link", tarfile.LNKTYPE, "../../escaped"),
    ("device", tarfile.CHRTYPE, ""),
]


def _archive(member: tuple[str, bytes, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo(member[0])
        info.type, info.linkname = member[1], member[2]
        archive.addfile(info)
    return content.getvalue()


@pytest.mark.usefixtures("patient")
def test_another_runs_name_is_not_attached_to(aws: AWS, there: SageMakerTarget) -> None:
    there.submit(make_run(aws, *JOB))
    with pytest.raises(PreflightError, match=r"already, whose files are under s3://.*/team/fire/n"):
        there.submit(make_run(aws, *JOB, root="others"))


@pytest.mark.usefixtures("patient")
def test_a_job_that_does_not_end_is_told_of(aws: AWS, there: SageMakerTarget) -> None:
    handle = there.submit(make_run(aws, *JOB, "sagemaker.stop_wait_s=1"))
    aws.emulator.wait_for_log(NAME, "at work")
    aws.emulator.hang(NAME)
    with pytest.raises(RetryableError, match=r"has not ended fire-night within sagemaker.stop_w"):
        there.stop(handle)


@pytest.mark.usefixtures("patient")
def test_only_what_this_project_started_is_listed(aws: AWS, there: SageMakerTarget) -> None:
    handles = [there.submit(make_run(aws, *JOB, run_id=run_id)) for run_id in ("b_1", "a")]
    other = aws.emulator.jobs[sagemaker_name("fire", "a")]
    tags, other.tags = other.tags, {**other.tags, "emberline:project": "others"}
    assert there.list() == handles[:1]
    other.tags = tags
    assert there.list() == handles
    for handle in handles:
        there.stop(handle)


# Members in jobs of their own

APART = (
    *JOB,
    "members={logistic_regression: {}, lstm_classifier: {epochs: 4}}",
)


def test_a_member_that_fails_takes_no_other_with_it(aws: AWS, there: SageMakerTarget) -> None:
    run = make_run(aws, *APART, "sagemaker.max_parallel_jobs=2", "sagemaker.max_attempts=1")
    handle = there.submit(run)
    regression, network, combine = (
        sagemaker_name("fire", "night", member=part)
        for part in ("logistic_regression", "lstm_classifier", "_combine")
    )
    assert list(aws.emulator.jobs) == [regression, network]
    aws.emulator.wait_for_log(network, "step prepare")
    aws.emulator.kill(network)
    seen: list[JobState | None] = []
    state = wait(there, handle, interval_s=0.2, on_poll=seen.append)
    assert state.status == "SUCCEEDED", (state, list(there.logs(handle)))
    assert list(aws.emulator.jobs) == [regression, network, combine]
    assert [job.status for job in aws.emulator.jobs.values()] == [
        "Completed", "Failed", "Completed",
    ]  # fmt: skip
    result = there.result(handle)
    fitted, failed = result.members
    assert (fitted.status, failed.status) == ("SUCCEEDED", "FAILED")
    assert str(failed.reason).startswith("InternalServerError: We encountered an internal error")
    assert set(result.metrics) == {"val", "test"}
    assert any(state.is_due for state in seen if state is not None)
    assert [event["member"] for event in events(run, "member_started")].count(
        "logistic_regression"
    ) == 1
    assert state.details["members"] == "1 of 2 fitted"
    told = [line for line in there.logs(handle) if "logistic_regression SUCCEEDED" in line]
    assert [line.partition("| ")[0] for line in told] == ["logistic_regression"]
    assert state.details["trained"] == "{} s".format(
        sum(job.describe()["TrainingTimeInSeconds"] for job in aws.emulator.jobs.values())
    )
    assert there.submit(run) == handle
    assert len(aws.emulator.jobs) == 3


@pytest.mark.usefixtures("patient")
def test_members_are_stopped_together_and_taken_up_again(aws: AWS, there: SageMakerTarget) -> None:
    run = make_run(aws, *APART, "sagemaker.max_parallel_jobs=1")
    handle = there.submit(run)
    assert len(aws.emulator.jobs) == 1
    assert not there.status(handle).is_due  # one at once
    there.stop(handle)
    state = there.status(handle)
    assert (state.status, state.is_due) == ("STOPPED", False)
    assert run.is_stop_requested()  # a member that ends well meanwhile starts no other
    there.submit(run)
    assert not run.is_stop_requested()
    assert list(aws.emulator.jobs)[1:] == [
        sagemaker_name("fire", "night", 2, "logistic_regression")
    ]
    assert there.status(handle).status in ("PENDING", "RUNNING")
    there.stop(handle)


def test_local_data_are_learned_from_there(
    aws: AWS, there: SageMakerTarget, tmp_path: Path
) -> None:
    rows = random.Random(1)
    path = tmp_path / "rows.txt"  # in a folder, such a file would be taken for a note
    lines = [f"{a},{b},{int(a + b + rows.gauss(0, 0.5) > 0)}" for a, b in _pairs(rows, 600)]
    path.write_text("\n".join(["a,b,alarm", *lines]))
    job = (
        "data={path: '" + str(path) + "', label_column: alarm}",
        "members=[logistic_regression]",
        "resources.num_cpus=1",
        "tracking.enabled=false",
    )
    here = LocalTarget(str(tmp_path / "here"))
    spec = load_spec("fire", overrides=job, storage=str(tmp_path / "here"))
    local = here.submit(Run.create(spec, "night"))
    run = make_run(aws, *job)
    seen: list[tuple[int, int]] = []
    there.on_upload = lambda done, total: seen.append((done, total))
    assert wait(here, local, interval_s=0.2).status == "SUCCEEDED"
    result = finish(there, there.submit(run))
    expected = here.result(local)
    assert result.metrics == expected.metrics
    assert result.data is not None
    assert expected.data is not None
    assert result.data.digest == expected.data.digest
    assert seen[-1] == (path.stat().st_size,) * 2


def _pairs(rows: random.Random, number: int) -> list[tuple[float, float]]:
    return [(rows.gauss(0, 1), rows.gauss(0, 1)) for _ in range(number)]
