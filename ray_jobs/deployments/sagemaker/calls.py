"""What every kind of resource at SageMaker has: tags, pages of a list, and the words by which the
service says that there is none of a name.

Source: Amazon SageMaker AI API Reference, "ListTags". That a resource is not there, or is there
already, is a ValidationException known by its words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, message_of

_MISSING = re.compile("could not find|not found|does not exist", re.IGNORECASE)
_PAGE_SIZE = 100


def read_tags(aws: Aws, arn: str) -> dict[str, str] | None:
    """The tags of a resource; None: it is gone.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    with answers():
        try:
            pages = aws.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
            return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
        except ClientError as error:
            if is_missing(error):
                return None
            raise


def tag(aws: Aws, arn: str, tags: Mapping[str, str]) -> None:
    """Raises PreflightError, RetryableError: as `answers` says."""
    with answers():
        aws.client("sagemaker").add_tags(
            ResourceArn=arn, Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
        )


def is_missing(error: Any) -> bool:
    """Whether what was asked for does not exist."""
    return code_of(error) in ("ValidationException", "ResourceNotFound", "ValidationError") and (
        _MISSING.search(message_of(error)) is not None
    )


def listed(aws: Aws, kind: str, contains: str) -> Iterator[Mapping[str, Any]]:
    """What ListEndpoints, ListEndpointConfigs or ListModels says of those whose name has a text.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    key = {"endpoints": "Endpoints", "endpoint_configs": "EndpointConfigs"}.get(kind, "Models")
    with answers():
        pages = aws.client("sagemaker").get_paginator(f"list_{kind}")
        for page in pages.paginate(
            NameContains=contains, PaginationConfig={"PageSize": _PAGE_SIZE}
        ):
            yield from page[key]
