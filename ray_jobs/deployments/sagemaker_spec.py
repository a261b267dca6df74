"""What a job description says about SageMaker endpoints: the section `deployment.sagemaker`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_jobs.section import Section

_INSTANCE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9]+")
_MIN_STEP, _MAX_STEP = 0.1, 0.5  # of the capacity; Developer Guide, "Blue/Green Deployments"

NumInstances = Annotated[int, Field(ge=1, le=1000)]


class EndpointSpec(Section):
    """The instances of an endpoint, and how a new version takes over its traffic. Role, image,
    region, VPC, key and tags are those of the section `sagemaker`.

    Source: Amazon SageMaker AI API Reference, "ProductionVariant" and "BlueGreenUpdatePolicy".
    """

    instance_type: str = "ml.m5.large"
    instance_count: NumInstances = 1  # of each version
    # Autoscaling of each version that answers: between these, to the target an instance.
    min_instances: NumInstances | None = None  # default: instance_count
    max_instances: NumInstances | None = None  # None: as many as instance_count, always
    target_invocations_per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rollout: Literal["all_at_once", "canary", "linear"] = "all_at_once"
    canary_share: Annotated[float, Field(gt=0, le=_MAX_STEP)] = 0.1  # of a canary, or a linear step
    bake_s: Annotated[int, Field(ge=0, le=3600)] = 0  # between two steps, and after the last
    alarms: Annotated[list[str], Field(max_length=10)] = []  # of CloudWatch: one that goes off
    # takes the change back
    startup_timeout_s: Annotated[int, Field(ge=60, le=3600)] = 300  # until a container is healthy
    # Of one instance on demand, where prices.csv has no price for hosting or you pay another.
    usd_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # For the endpoint to be at work; 0: not at all, and the same command later sees it through.
    max_wait_s: Annotated[int, Field(ge=0)] = 3600

    @field_validator("instance_type")
    @classmethod
    def _instance(cls, text: str) -> str:
        if not _INSTANCE.fullmatch(text):
            raise ValueError(f"{text!r} is not an instance type of SageMaker, such as ml.m5.large")
        return text

    @field_validator("alarms")
    @classmethod
    def _alarms(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name.strip() or len(name) > 255:
                raise ValueError(f"{name!r} is not the name of an alarm in CloudWatch")
        return names

    @model_validator(mode="after")
    def _agree(self) -> EndpointSpec:
        if (self.max_instances is None) != (self.target_invocations_per_minute is None):
            raise ValueError(
                "autoscaling takes both max_instances and target_invocations_per_minute; set the "
                "other, or leave both out"
            )
        if self.max_instances is None and self.min_instances is not None:
            raise ValueError(
                "min_instances belongs to autoscaling: set max_instances and "
                "target_invocations_per_minute too, or instance_count alone"
            )
        low, high = self.instances
        if not low <= self.instance_count <= high:
            raise ValueError(
                f"instance_count ({self.instance_count}) is how many it starts with: it must be "
                f"within min_instances ({low}) and max_instances ({high})"
            )
        if self.rollout == "linear" and self.canary_share < _MIN_STEP:
            raise ValueError(
                f"a linear rollout takes steps of {_MIN_STEP:g} to {_MAX_STEP:g} of the capacity; "
                "raise canary_share"
            )
        if not self.bake_s and (self.rollout != "all_at_once" or self.alarms):
            what = "alarms are watched" if self.alarms else f"a {self.rollout} rollout waits"
            raise ValueError(f"{what} for bake_s seconds, which is 0; set it, such as bake_s: 300")
        return self

    @property
    def instances(self) -> tuple[int, int]:
        """The least and the most of each version."""
        low = self.instance_count if self.min_instances is None else self.min_instances
        return low, self.instance_count if self.max_instances is None else self.max_instances
