"""Endpoints as the service has them: look at one, wait for it, delete it.

Source: Amazon SageMaker AI API Reference, "DescribeEndpoint".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.deployments.base import DeploymentStatus, Say
from ray_jobs.deployments.sagemaker.calls import is_missing, listed, read_tags
from ray_jobs.deployments.sagemaker.names import PREFIX
from ray_jobs.deployments.sagemaker.request import DEPLOYMENT_TAG
from ray_jobs.errors import RetryableError
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, message_of
from ray_jobs.targets.sagemaker.request import PROJECT, PROJECT_TAG

_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_STATUSES: dict[str, DeploymentStatus] = {
    "Creating": "PENDING",
    "InService": "RUNNING",
    "Updating": "RUNNING",  # the versions before answer meanwhile
    "SystemUpdating": "RUNNING",
    "RollingBack": "RUNNING",
    "UpdateRollbackFailed": "RUNNING",  # with some instances of either configuration
    "Deleting": "STOPPED",
    "OutOfService": "FAILED",
    "Failed": "FAILED",
}
_DELETE_WAIT_S = 1800


class _Answer(BaseModel):
    """As boto3 gives it: no conversions, and whatever else is in it is of no interest."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _VariantSummary(_Answer):
    VariantName: str
    CurrentInstanceCount: int | None = None
    DesiredInstanceCount: int | None = None


class _Description(_Answer):
    EndpointName: str
    EndpointArn: str
    EndpointStatus: str
    EndpointConfigName: str | None = None  # None: it failed before it had one
    FailureReason: str | None = None
    ProductionVariants: list[_VariantSummary] | None = None
    ShadowProductionVariants: list[_VariantSummary] | None = None


@dataclass(frozen=True)
class Endpoint:
    """One look at an endpoint."""

    name: str
    arn: str
    service_status: str
    config: str | None
    reason: str | None = None
    num_instances: Mapping[str, int] = field(default_factory=dict)  # of each variant
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> DeploymentStatus:
        return _STATUSES[self.service_status]

    @property
    def is_changing(self) -> bool:
        return self.service_status in _CHANGING

    @property
    def is_ours(self) -> bool:
        return self.tags.get(PROJECT_TAG) == PROJECT and DEPLOYMENT_TAG in self.tags


def describe(aws: Aws, name: str) -> Endpoint | None:
    """One look at an endpoint; None: there is none of that name.

    Raises:
        RetryableError: the answer cannot be read.
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError
    from botocore.parsers import ResponseParserError

    client = aws.client("sagemaker")
    with answers():
        try:
            answer = client.describe_endpoint(EndpointName=name)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
        except (ResponseParserError, ValueError, TypeError, AttributeError) as error:
            # botocore's parser takes the service at its word: it fails as it may where that is odd.
            answer = f"{type(error).__name__}: {error}"
    endpoint = _parsed(answer, name)
    tags = read_tags(aws, endpoint.arn)
    return None if tags is None else replace(endpoint, tags=tags)


def _parsed(answer: Any, name: str) -> Endpoint:
    try:
        found = _Description.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise _unreadable(name, f"{where}: {first['msg']}") from None
    if found.EndpointName != name:
        raise _unreadable(name, f"it is of {found.EndpointName!r}")
    if found.EndpointStatus not in _STATUSES:
        raise _unreadable(name, f"unknown status {found.EndpointStatus!r}")
    variants = [*(found.ProductionVariants or []), *(found.ShadowProductionVariants or [])]
    counts = {
        variant.VariantName: variant.CurrentInstanceCount or variant.DesiredInstanceCount or 0
        for variant in variants
    }
    return Endpoint(
        found.EndpointName,
        found.EndpointArn,
        found.EndpointStatus,
        found.EndpointConfigName,
        found.FailureReason,
        counts,
    )


def _unreadable(name: str, fault: str) -> RetryableError:
    return RetryableError(
        f"SageMaker's description of the endpoint {name!r} cannot be read ({fault}); try again"
    )


def find_ours(aws: Aws) -> Iterator[Endpoint]:
    """Every endpoint of this project.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    names = [summary["EndpointName"] for summary in listed(aws, "endpoints", PREFIX)]
    for name in names:
        endpoint = describe(aws, name)
        if endpoint is not None and endpoint.is_ours:
            yield endpoint


def wait(
    aws: Aws, name: str, *, max_wait_s: float, poll_interval_s: float, say: Say
) -> Endpoint | None:
    """An endpoint, once no change of it goes on; None: it is gone.

    Raises:
        RetryableError: not within the time.
        PreflightError, RetryableError: as `answers` says.
    """
    deadline = time.monotonic() + max_wait_s
    said = ""
    while True:
        endpoint = describe(aws, name)
        if endpoint is None or not endpoint.is_changing:
            return endpoint
        if endpoint.service_status != said:
            said = endpoint.service_status
            say(f"{name} is {said}")
        if time.monotonic() > deadline:
            raise RetryableError(
                f"{name} is still {said} after deployment.sagemaker.max_wait_s={max_wait_s:g}; it "
                "goes on: give the same command again to see it through"
            )
        time.sleep(poll_interval_s)


def delete(aws: Aws, name: str, *, poll_interval_s: float, say: Say) -> None:
    """Delete an endpoint. Returns when it is gone.

    Raises:
        RetryableError: not within half an hour.
        PreflightError, RetryableError: as `answers` says.
    """
    deadline = time.monotonic() + _DELETE_WAIT_S
    while (endpoint := describe(aws, name)) is not None:
        if endpoint.service_status != "Deleting" and _is_taken(aws, name):
            say(f"{name} is being deleted")
            continue
        if time.monotonic() > deadline:
            raise RetryableError(
                f"SageMaker has not deleted {name} within {_DELETE_WAIT_S} s; it may still cost "
                "money: give the same command again"
            )
        time.sleep(poll_interval_s)


def _is_taken(aws: Aws, name: str) -> bool:
    """Whether the service deletes an endpoint, or has none. It deletes none that is being made or
    changed: that has to end first."""
    from botocore.exceptions import ClientError

    with answers():
        try:
            aws.client("sagemaker").delete_endpoint(EndpointName=name)
        except ClientError as error:
            if code_of(error) == "ValidationException" and "in-progress" in message_of(error):
                return False
            if not is_missing(error):
                raise
    return True
