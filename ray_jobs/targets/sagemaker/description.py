"""What SageMaker says about a training job, parsed where it arrives.

An answer that cannot be read is a FAILED state that says why; a figure that is not in the answer
is None.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import RetryableError
from ray_jobs.result import Finite, Status
from ray_jobs.targets.base import ENDED, JobState

# Amazon SageMaker AI API Reference, "DescribeTrainingJob": TrainingJobStatus and SecondaryStatus.
_STATUSES: dict[str, Status] = {
    "InProgress": "RUNNING",
    "Stopping": "RUNNING",
    "Completed": "SUCCEEDED",
    "Failed": "FAILED",
    "Stopped": "STOPPED",
    "Deleting": "FAILED",
}
_NOT_STARTED = {
    "Starting",
    "Pending",
    "LaunchingMLInstances",
    "PreparingTrainingStack",
    "DownloadingTrainingImage",
    "Downloading",
}
# The service stops such a job, but nobody has asked for it.
_OUT_OF_TIME = {
    "MaxRuntimeExceeded": "it trained for as long as it may; raise sagemaker.max_run_s, or "
    "max_cost_usd if that is set",
    "MaxWaitTimeExceeded": "no spot capacity within its time; raise sagemaker.max_wait_s, or set "
    "spot: false",
}
_MAY_PASS = ("InternalServerError", "CapacityError")  # how such a FailureReason begins
_EXIT_CODE = re.compile(r"exit code:? (\d{1,3})\b", re.IGNORECASE)


class _Answer(BaseModel):
    """As boto3 gives it: no conversions, and whatever else is in it is of no interest."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Artifacts(_Answer):
    S3ModelArtifacts: str


class _Instances(_Answer):
    InstanceType: str | None = None
    InstanceCount: Annotated[int, Field(ge=0)] | None = None
    SelectedInstanceType: str | None = None


class _Metric(_Answer):
    MetricName: str
    Value: float


class _Transition(_Answer):
    Status: str
    StatusMessage: str | None = None


class _Description(_Answer):
    TrainingJobName: str
    TrainingJobStatus: str
    SecondaryStatus: str | None = None
    FailureReason: str | None = None
    ModelArtifacts: _Artifacts | None = None
    ResourceConfig: _Instances | None = None
    CreationTime: datetime | None = None
    TrainingStartTime: datetime | None = None
    TrainingEndTime: datetime | None = None
    TrainingTimeInSeconds: Annotated[int, Field(ge=0)] | None = None
    BillableTimeInSeconds: Annotated[int, Field(ge=0)] | None = None
    EnableManagedSpotTraining: bool | None = None
    FinalMetricDataList: list[_Metric] | None = None
    SecondaryStatusTransitions: list[_Transition] | None = None


class TrainingJobState(BaseModel):
    """One look at a training job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    status: Status
    reason: str | None = None  # why it FAILED
    is_malformed: bool = False  # the answer could not be read: the job itself may be well
    service_status: str | None = None
    secondary_status: str | None = None
    num_interruptions: int | None = None  # times that spot capacity was taken back
    instance_type: str | None = None
    instance_count: int | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    training_s: int | None = None  # of one instance
    billable_s: int | None = None  # of one instance
    is_spot: bool | None = None
    metrics: dict[str, Finite] = {}  # the last value of each; one that is not finite is absent
    model_uri: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_gone(self) -> bool:
        """SageMaker does not know the job, or not any more."""
        return self.service_status is None and not self.is_malformed

    @property
    def spot_savings(self) -> float | None:
        """The share of the price that spot capacity saved, 1 - billable / training.

        Amazon SageMaker AI API Reference, "DescribeTrainingJob", BillableTimeInSeconds.
        """
        if not self.is_spot or self.billable_s is None or not self.training_s:
            return None
        return max(0.0, 1 - self.billable_s / self.training_s)

    @property
    def exit_code(self) -> int | None:
        """The container's exit code, where the reason of the failure names it."""
        found = _EXIT_CODE.search(self.reason or "")
        return int(found[1]) if found else None

    @property
    def may_be_retried(self) -> bool:
        """It FAILED for a reason that may pass: the service's own, or one the job calls so."""
        if self.status != "FAILED":
            return False
        is_service = (self.reason or "").startswith(_MAY_PASS)
        return is_service or self.exit_code == RetryableError.exit_code

    @property
    def _instances(self) -> str | None:
        if self.instance_type is None or self.instance_count is None:
            return self.instance_type
        return f"{self.instance_count} x {self.instance_type}"

    def as_job_state(self) -> JobState:
        """As every target tells it."""
        savings = self.spot_savings
        details = {
            "instance": self._instances,
            "trained": None if self.training_s is None else f"{self.training_s} s",
            "billable": None if self.billable_s is None else f"{self.billable_s} s",
            "spot savings": None if savings is None else f"{savings:.0%}".replace("%", " %"),
            "interruptions": str(self.num_interruptions) if self.num_interruptions else None,
            "exit_code": None if self.exit_code is None else str(self.exit_code),
            **{name: f"{value:.6g}" for name, value in self.metrics.items()},
        }
        return JobState(
            status=self.status,
            reason=self.reason,
            started_at=self.started_at,
            ended_at=self.ended_at,
            secondary=self.secondary_status,
            may_be_retried=self.may_be_retried,
            details={name: text for name, text in details.items() if text is not None},
        )


def parse_description(answer: Any, *, name: str) -> TrainingJobState:
    """Read an answer to DescribeTrainingJob. It never raises: see `is_malformed`.

    Args:
        answer: as boto3 gives it, or whatever came in its place.
        name: the job that was asked for.
    """
    try:
        found = _Description.model_validate(answer)
    except ValidationError as error:
        return _malformed(name, _first(error))
    if found.TrainingJobName != name:
        return _malformed(name, f"it is of the job {found.TrainingJobName!r}")
    status = _status(found)
    if status is None:
        return _malformed(name, f"unknown status {found.TrainingJobStatus!r}")
    instances = found.ResourceConfig or _Instances()
    return TrainingJobState(
        name=name,
        status=status,
        reason=_reason(found) if status == "FAILED" else None,
        service_status=found.TrainingJobStatus,
        secondary_status=found.SecondaryStatus,
        num_interruptions=_num_interruptions(found),
        instance_type=instances.SelectedInstanceType or instances.InstanceType,
        instance_count=instances.InstanceCount,
        created_at=found.CreationTime,
        started_at=found.TrainingStartTime,
        ended_at=found.TrainingEndTime,
        training_s=found.TrainingTimeInSeconds,
        billable_s=found.BillableTimeInSeconds,
        is_spot=found.EnableManagedSpotTraining,
        metrics={
            metric.MetricName: metric.Value
            for metric in found.FinalMetricDataList or []
            if math.isfinite(metric.Value)
        },
        model_uri=found.ModelArtifacts.S3ModelArtifacts if found.ModelArtifacts else None,
    )


def deleted(name: str) -> TrainingJobState:
    """The state of a job that SageMaker does not know, or not any more."""
    reason = f"SageMaker has no training job {name!r}: it was deleted, or is in another region"
    return TrainingJobState(name=name, status="FAILED", reason=reason)


def _status(found: _Description) -> Status | None:
    if found.TrainingJobStatus == "InProgress" and found.SecondaryStatus in _NOT_STARTED:
        return "PENDING"
    if found.TrainingJobStatus == "Stopped" and found.SecondaryStatus in _OUT_OF_TIME:
        return "FAILED"
    return _STATUSES.get(found.TrainingJobStatus)


def _reason(found: _Description) -> str:
    if found.TrainingJobStatus == "Deleting":
        return "it is being deleted"
    if found.SecondaryStatus in _OUT_OF_TIME:
        return _OUT_OF_TIME[found.SecondaryStatus]
    return found.FailureReason or "SageMaker gives no reason; read the job's logs"


def _num_interruptions(found: _Description) -> int | None:
    if found.SecondaryStatusTransitions is None:
        return None
    return sum(step.Status == "Interrupted" for step in found.SecondaryStatusTransitions)


def _malformed(name: str, fault: str) -> TrainingJobState:
    reason = f"SageMaker's description of {name!r} cannot be read: {fault}"
    return TrainingJobState(name=name, status="FAILED", reason=reason, is_malformed=True)


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the answer"
    return f"{place}: {fault['msg']}"
