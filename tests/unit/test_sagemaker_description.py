from __future__ import annotations

import copy
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.targets.sagemaker.description import deleted, parse_description

NAME = "emberline-fire-20261121"
STARTED = datetime(2026, 11, 21, 12, tzinfo=UTC)


def answer(**fields: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": NAME,
        "TrainingJobArn": f"arn:aws:sagemaker:eu-west-1:123456789012:training-job/{NAME}",
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": "s3://runs/model.tar.gz"},
        "ResourceConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 2,
            "VolumeSizeInGB": 30,
        },
        "CreationTime": STARTED,
        "TrainingStartTime": STARTED,
        "TrainingEndTime": STARTED,
        "TrainingTimeInSeconds": 500,
        "BillableTimeInSeconds": 100,
        "EnableManagedSpotTraining": True,
        "FinalMetricDataList": [
            {"MetricName": "val:f1", "Value": 0.875, "Timestamp": STARTED},
            {"MetricName": "test:f1", "Value": 0.8125, "Timestamp": STARTED},
        ],
        "SecondaryStatusTransitions": [
            {"Status": "Starting", "StartTime": STARTED, "StatusMessage": "Launching"},
            {"Status": "Interrupted", "StartTime": STARTED, "StatusMessage": "Taken back"},
            {"Status": "Completed", "StartTime": STARTED, "StatusMessage": ""},
        ],
        **fields,
    }


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in answer().items() if key not in names}


def test_a_job_that_succeeded() -> None:
    state = parse_description(answer(), name=NAME)
    assert (state.status, state.reason, state.is_malformed) == ("SUCCEEDED", None, False)
    assert state.metrics == {"val:f1": 0.875, "test:f1": 0.8125}
    assert (state.training_s, state.billable_s) == (500, 100)
    assert state.spot_savings == pytest.approx(0.8)
    assert (state.instance_type, state.instance_count) == ("ml.m5.xlarge", 2)
    assert state.num_interruptions == 1
    assert state.model_uri == "s3://runs/model.tar.gz"
    assert state.has_ended


@pytest.mark.parametrize(
    ("service", "secondary", "status"),
    [
        ("InProgress", "Starting", "PENDING"),
        ("InProgress", "Pending", "PENDING"),
        ("InProgress", "Downloading", "PENDING"),
        ("InProgress", "Training", "RUNNING"),
        ("InProgress", "Uploading", "RUNNING"),
        ("InProgress", "Interrupted", "RUNNING"),
        ("InProgress", "SomethingNew", "RUNNING"),
        ("Stopping", "Stopping", "RUNNING"),
        ("Stopped", "Stopped", "STOPPED"),
        ("Stopped", "MaxRuntimeExceeded", "FAILED"),
        ("Stopped", "MaxWaitTimeExceeded", "FAILED"),
        ("Completed", "Completed", "SUCCEEDED"),
        ("Failed", "Failed", "FAILED"),
        ("Deleting", "Deleting", "FAILED"),
    ],
)
def test_each_status(service: str, secondary: str, status: str) -> None:
    given = answer(TrainingJobStatus=service, SecondaryStatus=secondary)
    state = parse_description(given, name=NAME)
    assert state.status == status
    assert (state.reason is not None) == (status == "FAILED")
    assert not state.is_malformed


def test_every_status_of_the_service_is_known() -> None:
    service = get_session().get_service_model("sagemaker")
    members = service.operation_model("DescribeTrainingJob").output_shape.members
    for status in members["TrainingJobStatus"].enum:
        for secondary in members["SecondaryStatus"].enum:
            given = answer(TrainingJobStatus=status, SecondaryStatus=secondary)
            assert not parse_description(given, name=NAME).is_malformed


def test_a_failure_and_its_exit_code() -> None:
    reason = "AlgorithmError: the labels are all the same, exit code: 3"
    given = answer(TrainingJobStatus="Failed", FailureReason=reason)
    state = parse_description(given, name=NAME)
    assert (state.status, state.reason, state.exit_code) == ("FAILED", reason, 3)
    given.pop("FailureReason")
    state = parse_description(given, name=NAME)
    assert state.reason == "SageMaker gives no reason; read the job's logs"
    assert state.exit_code is None


def test_what_stopped_a_job_out_of_time_is_said() -> None:
    given = answer(TrainingJobStatus="Stopped", SecondaryStatus="MaxRuntimeExceeded")
    reason = parse_description(given, name=NAME).reason
    assert reason == (
        "it trained for as long as it may; raise sagemaker.max_run_s, or max_cost_usd if that is "
        "set"
    )


def test_no_metrics_are_no_metrics() -> None:
    for described in (without("FinalMetricDataList"), answer(FinalMetricDataList=[])):
        state = parse_description(described, name=NAME)
        assert (state.status, state.metrics) == ("SUCCEEDED", {})


def test_a_metric_that_is_not_finite_is_absent() -> None:
    metrics = [{"MetricName": "a", "Value": math.nan}, {"MetricName": "b", "Value": 1.0}]
    assert parse_description(answer(FinalMetricDataList=metrics), name=NAME).metrics == {"b": 1.0}


def test_savings_need_a_spot_job_and_both_times() -> None:
    for described in (
        answer(EnableManagedSpotTraining=False),
        without("EnableManagedSpotTraining"),
        without("BillableTimeInSeconds"),
        without("TrainingTimeInSeconds"),
        answer(TrainingTimeInSeconds=0),
    ):
        assert parse_description(described, name=NAME).spot_savings is None


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "the answer: Input should be a valid dictionary or instance of _Description"),
        ("<html>", "the answer: Input should be"),
        ({}, "TrainingJobName: Field required"),
        (without("TrainingJobStatus"), "TrainingJobStatus: Field required"),
        (answer(TrainingJobName="other"), "it is of the job 'other'"),
        (answer(TrainingJobStatus="Dreaming"), "unknown status 'Dreaming'"),
        (answer(BillableTimeInSeconds="100"), "BillableTimeInSeconds: Input should be a valid int"),
        (answer(BillableTimeInSeconds=-1), "BillableTimeInSeconds: Input should be greater"),
        (answer(BillableTimeInSeconds=True), "BillableTimeInSeconds: Input should be a valid int"),
        (
            answer(FinalMetricDataList=[{"MetricName": "f1"}]),
            "FinalMetricDataList.0.Value: Field required",
        ),
        (answer(ModelArtifacts={}), "ModelArtifacts.S3ModelArtifacts: Field required"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure_that_says_so(given: Any, fault: str) -> None:
    state = parse_description(given, name=NAME)
    assert (state.status, state.is_malformed, state.metrics) == ("FAILED", True, {})
    assert state.reason is not None
    assert state.reason.startswith(f"SageMaker's description of {NAME!r} cannot be read: ")
    assert fault in state.reason


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything that is in a nested answer."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inner:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.just([]),
    st.just({}),
    st.lists(st.dictionaries(st.text(), st.integers())),
)


@given(st.data())
def test_no_part_of_an_answer_can_crash_it_or_make_up_a_number(data: st.DataObject) -> None:
    broken = copy.deepcopy(answer())
    path = data.draw(st.sampled_from(places(broken)))
    holder: Any = broken
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(JUNK)
    state = parse_description(broken, name=NAME)
    whole = parse_description(answer(), name=NAME)
    if state.is_malformed:
        assert state.status == "FAILED"
        assert state.reason
        assert state.metrics == {}
        assert state.billable_s is state.training_s is state.spot_savings is None
        return
    for name, value in state.metrics.items():  # what is there was in the answer
        assert {"MetricName": name, "Value": value}.items() <= next(
            metric.items()
            for metric in broken["FinalMetricDataList"]
            if metric["MetricName"] == name
        )
    assert state.billable_s in (broken.get("BillableTimeInSeconds"), None)
    assert state.training_s in (broken.get("TrainingTimeInSeconds"), None)
    assert state.spot_savings is None or 0 <= state.spot_savings <= 1
    if path[0] not in ("TrainingJobStatus", "SecondaryStatus"):
        assert state.status == whole.status


@given(JUNK)
def test_anything_in_place_of_an_answer(junk: Any) -> None:
    assert parse_description(junk, name=NAME).is_malformed


@pytest.mark.parametrize(
    ("reason", "may_be_retried"),
    [
        ("InternalServerError: We encountered an internal error. Please try again.", True),
        ("CapacityError: Unable to provision requested ML compute capacity.", True),
        ("AlgorithmError: storage does not answer, exit code: 5", True),
        ("AlgorithmError: one class only, exit code: 3", False),
        ("ClientError: Please use an instance type with more memory", False),
    ],
)
def test_only_what_may_pass_is_retried(reason: str, may_be_retried: bool) -> None:
    described = answer(TrainingJobStatus="Failed", FailureReason=reason)
    assert parse_description(described, name=NAME).as_job_state().may_be_retried == may_be_retried


def test_the_state_as_every_target_tells_it() -> None:
    state = parse_description(answer(), name=NAME).as_job_state()
    assert (state.status, state.secondary, state.started_at) == ("SUCCEEDED", "Completed", STARTED)
    assert state.details == {
        "instance": "2 x ml.m5.xlarge",
        "trained": "500 s",
        "billable": "100 s",
        "spot savings": "80 %",
        "interruptions": "1",
        "val:f1": "0.875",
        "test:f1": "0.8125",
    }
    bare = {"TrainingJobName": NAME, "TrainingJobStatus": "InProgress"}
    assert parse_description(bare, name=NAME).as_job_state().details == {}


def test_a_job_that_is_gone() -> None:
    state = deleted(NAME)
    assert state.status == "FAILED"
    assert not state.as_job_state().may_be_retried
    assert state.reason == (
        f"SageMaker has no training job {NAME!r}: it was deleted, or is in another region"
    )
