"""Training jobs as the service has them: make one, look at it, stop it, find this project's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.owners import Owner, parse_owner
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, is_missing, message_of
from ray_jobs.targets.sagemaker.description import TrainingJobState, deleted, parse_description
from ray_jobs.targets.sagemaker.request import (
    PROJECT,
    PROJECT_TAG,
    RUN_ID_TAG,
    STORAGE_TAG,
    TAG_PREFIX,
    WORKLOAD_TAG,
    owner_tags,
    request_faults,
)

_PAGE_SIZE = 100
_NEEDED = {WORKLOAD_TAG, RUN_ID_TAG, STORAGE_TAG}


def create(aws: Aws, request: Mapping[str, Any]) -> None:
    """Have a training job made, unless another process has just made the same.

    Raises:
        SpecError: the service's own model refuses the request, before anything is sent.
        PreflightError: the service refuses it, or another run has the name.
        RetryableError: it does not answer.
    """
    from botocore.exceptions import ClientError

    faults = request_faults(request)
    if faults:
        raise SpecError(f"SageMaker takes no such job: {'; '.join(faults)}")
    client = aws.client("sagemaker")
    with answers():
        try:
            client.create_training_job(**request)
        except ClientError as error:
            if code_of(error) != "ResourceInUse":
                raise
            name = request["TrainingJobName"]
            other = client.describe_training_job(TrainingJobName=name)
            output = other.get("OutputDataConfig", {}).get("S3OutputPath")
            if output != request["OutputDataConfig"]["S3OutputPath"]:
                raise PreflightError(
                    f"the account has a training job {name!r} already, whose files are under "
                    f"{output}; take another --run-id"
                ) from None


def describe(aws: Aws, name: str) -> TrainingJobState:
    """One look at a training job. An answer that cannot be read, and a job that is gone, are FAILED
    states that say so.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError
    from botocore.parsers import ResponseParserError

    client = aws.client("sagemaker")
    with answers():
        try:
            answer = client.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            if is_missing(error):
                return deleted(name)
            raise
        except (ResponseParserError, ValueError, TypeError, AttributeError) as error:
            # botocore's parser takes the service at its word: it fails as it may where that is odd.
            answer = f"{type(error).__name__}: {error}"
    return parse_description(answer, name=name)


def stop(aws: Aws, name: str) -> None:
    """Ask a training job to end. Nothing happens to one that has ended or is gone.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    with answers():
        try:
            aws.client("sagemaker").stop_training_job(TrainingJobName=name)
        except ClientError as error:
            has_ended = code_of(error) == "ValidationException" and "in status" in message_of(error)
            if not has_ended and not is_missing(error):
                raise


def find_tagged(aws: Aws) -> list[tuple[str, str, str]]:
    """Workload, run id and storage of this project's training jobs, the newest last.

    The index that Search reads lags behind: jobs in progress that it does not know yet are looked
    at one by one.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    client = aws.client("sagemaker")
    found: dict[str, _Tagged] = {}
    with answers():
        for name, job in _searched(client):
            found[name] = job
        for name, job in _in_progress(client, found):
            found[name] = job
    ours = [job for job in found.values() if job.tags.get(PROJECT_TAG) == PROJECT]
    ours = [job for job in ours if job.tags.keys() >= _NEEDED]
    ours.sort(key=lambda job: job.created_at)
    return [(job.tags[WORKLOAD_TAG], job.tags[RUN_ID_TAG], job.tags[STORAGE_TAG]) for job in ours]


def find_owned(aws: Aws) -> list[tuple[str, datetime, Owner]]:
    """This project's training jobs that go on and name the pod of a step as their owner: the name
    of each, when it was made, and the owner.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    with answers():
        jobs = list(_in_progress(aws.client("sagemaker"), {}))
    owned = [
        (name, job.created_at, parse_owner(job.tags, TAG_PREFIX))
        for name, job in jobs
        if job.tags.get(PROJECT_TAG) == PROJECT
    ]
    return [(name, made_at, owner) for name, made_at, owner in owned if owner is not None]


def adopt(aws: Aws, name: str, owner: Owner) -> None:
    """Have a training job belong to another owner.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    client = aws.client("sagemaker")
    with answers():
        arn = client.describe_training_job(TrainingJobName=name)["TrainingJobArn"]
        tags = [{"Key": key, "Value": value} for key, value in owner_tags(owner).items()]
        client.add_tags(ResourceArn=arn, Tags=tags)


@dataclass(frozen=True)
class _Tagged:
    created_at: datetime
    tags: dict[str, str]


def _searched(client: Any) -> Iterator[tuple[str, _Tagged]]:
    tagged = {"Name": f"Tags.{PROJECT_TAG}", "Operator": "Equals", "Value": PROJECT}
    pages = client.get_paginator("search").paginate(
        Resource="TrainingJob",
        SearchExpression={"Filters": [tagged]},
        PaginationConfig={"PageSize": _PAGE_SIZE},
    )
    for page in pages:
        for record in page["Results"]:
            job = record["TrainingJob"]
            yield job["TrainingJobName"], _Tagged(job["CreationTime"], _as_mapping(job["Tags"]))


def _in_progress(client: Any, known: Mapping[str, _Tagged]) -> Iterator[tuple[str, _Tagged]]:
    pages = client.get_paginator("list_training_jobs").paginate(
        StatusEquals="InProgress", PaginationConfig={"PageSize": _PAGE_SIZE}
    )
    for page in pages:
        for job in page["TrainingJobSummaries"]:
            if job["TrainingJobName"] not in known:
                arn = job["TrainingJobArn"]
                pages_of_tags = client.get_paginator("list_tags").paginate(ResourceArn=arn)
                tags = [tag for part in pages_of_tags for tag in part["Tags"]]
                yield job["TrainingJobName"], _Tagged(job["CreationTime"], _as_mapping(tags))


def _as_mapping(tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}
