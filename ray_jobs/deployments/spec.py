"""What a job description says about the deployment of its model: the section `deployment`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from ray_jobs.deployments.sagemaker_spec import EndpointSpec
from ray_jobs.errors import SpecError
from ray_jobs.section import Section

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
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
    start_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 180.0  # until the example is answered
    ping_interval_s: Annotated[float, Field(gt=0, le=3600)] = 5.0  # 3 missed: it is started again


class DeploymentSpec(Section):
    """How the model answers requests."""

    name: str | None = None  # default: the model's name
    challenger: ChallengerSpec | None = None
    record: RecordSpec = RecordSpec()
    local: LocalEndpointSpec = LocalEndpointSpec()
    sagemaker: EndpointSpec = EndpointSpec()

    def name_for(self, model: str) -> str:
        """What the deployment of a model is called, wherever it is.

        Raises:
            SpecError: it is no name.
        """
        name = self.name or model
        if not is_name(name):
            raise SpecError(
                f"{name!r} cannot be the name of a deployment: it has to be of at most 63 letters, "
                "digits, '.', '_' and '-', and begin with a letter or digit; set deployment.name"
            )
        return name


def is_name(text: str) -> bool:
    """Whether a deployment can be called so: it is also the name of a folder."""
    return _NAME.fullmatch(text) is not None
