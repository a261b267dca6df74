"""The places of deployments: this machine and SageMaker."""

from __future__ import annotations

from ray_jobs.deployments.base import Deployer
from ray_jobs.deployments.history import standing
from ray_jobs.errors import SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage

TARGETS = ("local", "sagemaker")


def known_target(target: str | None) -> str:
    """A target of deployments; None stands for `local`.

    Raises:
        SpecError: there is none such.
    """
    if target not in (None, *TARGETS):
        raise SpecError(f"no target {target!r} of deployments; there is {', '.join(TARGETS)}")
    return target or "local"


def connect(target: str, storage: Storage, spec: JobSpec | None = None) -> Deployer:
    """Where models are deployed.

    Raises:
        SpecError: there is no such target, or it needs a job description.
    """
    if known_target(target) == "local":
        from ray_jobs.deployments.local import LocalDeployer

        return LocalDeployer(storage)
    from ray_jobs.deployments.sagemaker import SageMakerDeployer

    if spec is None:
        raise SpecError(
            f"{target} needs a job description, for its account: name one with --config"
        )
    return SageMakerDeployer(spec)


def deployers(storage: Storage, spec: JobSpec | None = None) -> dict[tuple[str, str], Deployer]:
    """Where each deployment is that was made from this storage root: (target, name) -> its place.

    Args:
        spec: whose account of SageMaker is looked at, too; default: those of the deployments.
    """
    local = connect("local", storage)
    found = {("local", deployment.name): local for deployment in local.list()}
    if spec is not None:
        remote = connect("sagemaker", storage, spec)
        found |= {("sagemaker", deployment.name): remote for deployment in remote.list()}
    for name, change in standing(storage, "sagemaker").items():
        if ("sagemaker", name) not in found:
            found["sagemaker", name] = connect("sagemaker", storage, change.description())
    return found
