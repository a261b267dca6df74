"""Deployer: what every place where models are deployed can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ray_jobs.checks import Checklist
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.tracking.models import LocatedModel

DeploymentStatus = Literal["PENDING", "RUNNING", "FAILED", "STOPPED"]
Say = Callable[[str], None]  # progress, a line each, for stderr


@dataclass(frozen=True)
class Release:
    """A version that is to be deployed: where it is registered, and its checked bundle."""

    model: LocatedModel
    bundle: Path  # a folder that is named by the sha256 of its index

    @property
    def digest(self) -> str:
        return self.bundle.name


@dataclass(frozen=True)
class Variant:
    """One version behind an endpoint."""

    version: str
    digest: str
    weight: float  # its share of the requests: that it answers, or as a shadow is asked too
    is_shadow: bool = False  # its answers are only recorded


@dataclass(frozen=True)
class Costing:
    """A resource that costs money for as long as it is there."""

    resource: str  # what to look for in the console
    usd_per_hour: float | None  # None: no price is known
    note: str = ""


@dataclass(frozen=True)
class Deployment:
    """A name under which versions of one model answer."""

    target: str
    name: str
    model: str
    status: DeploymentStatus
    variants: tuple[Variant, ...] = ()  # the champion first
    url: str | None = None  # requests go to /invocations below it
    reason: str | None = None  # why it is not at work, or why the last change was taken back
    costs: tuple[Costing, ...] = ()
    details: dict[str, str] = field(default_factory=dict)  # the target's own, for people


class Deployer(ABC):
    """Where models are deployed. A change is done when the new version has answered its own
    example as it was recorded; until then, and if it does not, the version before it answers.

    Every method raises:
        RetryableError: the place does not answer now.
        PreflightError: it refuses, or lacks something; names the fix.
    """

    name: ClassVar[str]

    @abstractmethod
    def check(self, model: str, spec: DeploymentSpec) -> Checklist:
        """What can be known before a deployment. Changes nothing."""

    @abstractmethod
    def deploy(
        self,
        champion: Release,
        spec: DeploymentSpec,
        *,
        challenger: Release | None = None,
        say: Say,
    ) -> Deployment:
        """Make the versions answer under `spec.name`, or the model's. One that is there already,
        with these versions and settings, is left alone.

        Raises:
            JobFailed: the new version did not answer as recorded; the one before still answers.
        """

    @abstractmethod
    def find(self, name: str) -> Deployment | None:
        """A deployment of this project, by name."""

    @abstractmethod
    def list(self) -> Sequence[Deployment]:
        """Every deployment of this project."""

    @abstractmethod
    def invoke(self, name: str, body: bytes, media_type: str) -> bytes:
        """The answer to one request.

        Raises:
            JobFailed: it answers with an error.
        """

    @abstractmethod
    def delete(self, name: str, say: Say) -> Sequence[str]:
        """Remove a deployment and all that was made for it: what was removed. Returns when nothing
        of it is left that costs money.

        Raises:
            SpecError: there is none such; lists what there is.
        """
