"""What a job description says about the deployment of its model: the section `deployment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_jobs.deployments.sagemaker_spec import EndpointSpec
from ray_jobs.section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class ChallengerSpec(Section):
    """Another version beside the champion, behind the same endpoint."""

    version: str  # its number or an alias, such as challenger
    mode: Literal["split", "shadow"] = "shadow"
    weight: Fraction = 0.1  # of the requests that it answers; a shadow is asked as many


class RecordSpec(Section):
    """What is kept of live requests and answers, for drift and comparisons."""

    share: Fraction = 0.1  # of the requests; 0: nothing is kept
    max_mb_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0  # 10^6 bytes


class LocalEndpointSpec(Section):
    """A server on this machine."""

    host: str = "127.0.0.1"  # 0.0.0.0 for all interfaces
    port: Annotated[int, Field(ge=0, le=65535)] = 8080  # 0: any that is free


class DeploymentSpec(Section):
    """How the model answers requests."""

    name: str | None = None  # default: the model's name
    challenger: ChallengerSpec | None = None
    record: RecordSpec = RecordSpec()
    local: LocalEndpointSpec = LocalEndpointSpec()
    sagemaker: EndpointSpec = EndpointSpec()
