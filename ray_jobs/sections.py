"""The sections that job descriptions are made of, and what every description has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.result import Objective
from ray_jobs.section import Section
from ray_jobs.targets.ray_spec import RaySpec
from ray_jobs.targets.rayjob_spec import RayJobSpec
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.tracking.promotion_spec import PromotionSpec

# Keys that say where a job is carried out.
PLACE = ("target", "ray", "rayjob", "sagemaker", "kubeflow")
Share = Annotated[float, Field(gt=0, lt=1)]


class SplitShares(Section):
    """Shares of the rows; whole groups go to one split."""

    train: Share = 0.7
    val: Share = 0.15
    test: Share = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must add up to 1, but train + val + test = {total:g}")
        return self


class ResourceSpec(Section):
    """What the job may use on this machine or cluster."""

    num_cpus: Annotated[int, Field(ge=1)] | None = None  # default: all of this machine's
    cpus_per_member: Annotated[int, Field(ge=1)] | None = None  # default: half of num_cpus
    num_workers: Annotated[int, Field(ge=1)] = 1  # that train one network together
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # of a network; auto: the best there is


class TrackingSpec(Section):
    """What goes to MLflow. The server is MLFLOW_TRACKING_URI, or sqlite under the storage root."""

    enabled: bool = True
    experiment: str | None = None  # default: the workload's name
    model_name: str | None = None  # registered model; default: the workload's name


class JobSpec(Section):
    """One job, complete: the same spec, seed and versions give the same numbers.

    Each workload adds its own sections.
    """

    METRICS: ClassVar[Mapping[str, Literal["max", "min"]]]  # what the objective can be

    workload: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    storage: str = "./runs"
    target: Literal["local", "ray", "rayjob", "sagemaker"] = "local"
    objective: Objective
    tolerance: Annotated[float, Field(ge=0)] = 0.02  # of the objective, from run to run off the CPU
    resources: ResourceSpec = ResourceSpec()
    tracking: TrackingSpec = TrackingSpec()
    promotion: PromotionSpec = PromotionSpec()
    deployment: DeploymentSpec = DeploymentSpec()
    ray: RaySpec = RaySpec()
    rayjob: RayJobSpec = RayJobSpec()
    sagemaker: SageMakerSpec = SageMakerSpec()
    kubeflow: KubeflowSpec = KubeflowSpec()

    @field_validator("objective")
    @classmethod
    def _known_metric(cls, objective: Objective) -> Objective:
        if objective.metric not in cls.METRICS:
            raise ValueError(f"metric {objective.metric!r} is not one of {', '.join(cls.METRICS)}")
        mode = cls.METRICS[objective.metric]
        if objective.mode != mode:
            raise ValueError(f"the mode of {objective.metric} is {mode!r}, not {objective.mode!r}")
        return objective

    def families(self) -> dict[str, str]:
        """The models that the job trains: name -> family."""
        raise NotImplementedError

    def hyperparameters(self, member: str) -> dict[str, Any]:
        """What is set for one of them."""
        raise NotImplementedError

    @property
    def sweeps(self) -> bool:
        """Whether the job tries hyperparameters before it trains."""
        return False

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """This description with other values of dotted keys; every check is made again."""
        raw = self.model_dump(mode="json")
        for key, value in values.items():
            *path, last = key.split(".")
            section = raw
            for part in path:
                section = section[part]
            assert last in section, key
            section[last] = value
        return type(self).model_validate(raw)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def digest(self, *parts: str) -> str:
        """sha256 of the named top-level parts, or of all that decides the outcome."""
        elsewhere = {"storage", *PLACE, "resources", "parallel", "promotion", "deployment"}
        dump: dict[str, Any] = self.model_dump(mode="json", exclude=None if parts else elsewhere)
        chosen = {part: dump[part] for part in parts} if parts else dump
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
