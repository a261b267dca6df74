"""The parts of an endpoint, which cannot be changed once they are made: its configurations, and the
models that they name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray_jobs.deployments.base import Say
from ray_jobs.deployments.sagemaker.calls import is_missing, listed, read_tags
from ray_jobs.deployments.sagemaker.names import resource_start
from ray_jobs.deployments.sagemaker.request import DEPLOYMENT_TAG
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, message_of
from ray_jobs.targets.sagemaker.request import PROJECT, PROJECT_TAG

Kind = Literal["endpoint_config", "model"]

_EXISTS = re.compile("cannot create already existing|already exist", re.IGNORECASE)
_NAMES: dict[Kind, str] = {"endpoint_config": "EndpointConfigName", "model": "ModelName"}


@dataclass(frozen=True)
class Config:
    """One look at an endpoint configuration."""

    name: str
    content: Mapping[str, Any]
    tags: Mapping[str, str]

    @property
    def variants(self) -> list[Mapping[str, Any]]:
        shadows = self.content.get("ShadowProductionVariants") or []
        return [*self.content["ProductionVariants"], *shadows]

    @property
    def names(self) -> set[str]:
        """Of its variants."""
        return {variant["VariantName"] for variant in self.variants}

    @property
    def models(self) -> set[str]:
        return {variant["ModelName"] for variant in self.variants}


def describe_config(aws: Aws, name: str | None) -> Config | None:
    """One look at an endpoint configuration; None: there is none of that name.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    if not name:
        return None
    with answers():
        try:
            found = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
    tags = read_tags(aws, found["EndpointConfigArn"])
    return None if tags is None else Config(name, found, tags)


def make(aws: Aws, kind: Kind, request: Mapping[str, Any]) -> None:
    """Have a model or a configuration made. One of that name, which follows from all that it is
    made of, is the same.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    with answers():
        try:
            getattr(aws.client("sagemaker"), f"create_{kind}")(**request)
        except ClientError as error:
            if code_of(error) != "ValidationException" or not _EXISTS.search(message_of(error)):
                raise


def parts_of(aws: Aws, deployment: str) -> dict[Kind, set[str]]:
    """The names of the configurations and models that were made for a deployment.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    start = resource_start(deployment)  # others' may begin likewise: the tags tell
    found: dict[Kind, set[str]] = {}
    for kind, field in _NAMES.items():
        found[kind] = set()
        for summary in list(listed(aws, f"{kind}s", start)):
            tags = read_tags(aws, summary[field.removesuffix("Name") + "Arn"]) or {}
            if tags.get(PROJECT_TAG) == PROJECT and tags.get(DEPLOYMENT_TAG) == deployment:
                found[kind].add(summary[field])
    return found


def remove(aws: Aws, kind: Kind, name: str) -> bool:
    """Delete a configuration or a model. Whether it was there.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    with answers():
        try:
            getattr(aws.client("sagemaker"), f"delete_{kind}")(**{_NAMES[kind]: name})
        except ClientError as error:
            if is_missing(error):
                return False
            raise
    return True


def remove_others(aws: Aws, deployment: str, kept: Collection[str], say: Say) -> None:
    """Remove a deployment's configurations that are not among `kept`, and the models that only they
    name.

    Of two deployments at once, one's configuration may not be in use yet: the service refuses the
    endpoint that is to go over to it, and the same command again makes it anew.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    there = parts_of(aws, deployment)
    configs = [describe_config(aws, name) for name in kept]
    models = {model for config in configs if config is not None for model in config.models}
    for name in sorted(there["endpoint_config"] - set(kept)):
        remove(aws, "endpoint_config", name)
        say(f"removed the endpoint configuration {name}")
    for name in sorted(there["model"] - models):
        remove(aws, "model", name)
        say(f"removed the model {name}")


def archive_of(aws: Aws, model: str) -> str | None:
    """Where the archive of a model lies on S3; None: the model is gone.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    with answers():
        try:
            found = aws.client("sagemaker").describe_model(ModelName=model)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
    return found["PrimaryContainer"].get("ModelDataUrl")
