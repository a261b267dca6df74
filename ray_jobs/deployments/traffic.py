"""The requests to a deployment and their answers, wherever it is: live records of this project's
server, or what SageMaker has captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING

from ray_jobs.deployments.history import Change, History, standing
from ray_jobs.deployments.places import connect, known_target
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import DataError, SpecError
from ray_jobs.monitoring.records import Records, read_records
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import find_model
from ray_jobs.tracking.signing import DIGEST_TAG

if TYPE_CHECKING:
    from ray_jobs.deployments.sagemaker.capture import CapturedRecords


@dataclass(frozen=True)
class Traffic:
    """Records of a deployment, and where they come from."""

    records: Records | CapturedRecords
    target: str

    @property
    def is_captured(self) -> bool:
        """By SageMaker, which notes no latency and no request that failed."""
        return self.target == "sagemaker"


def read_traffic(
    storage: Storage, name: str, since: datetime | None = None, *, target: str | None = None
) -> Traffic:
    """What is recorded of the requests to a deployment.

    Args:
        since: of their time; aware.
        target: where it is deployed; needed only where there is one of that name on both.

    Raises:
        SpecError: there is no such target, none of that name on SageMaker, or one on both.
        DataError: SageMaker captures none of its requests.
        JobFailed, PreflightError: its model is refused.
        RetryableError: the registry, the storage or SageMaker does not answer.
    """
    change = standing(storage, "sagemaker").get(name)
    if target is None:
        if change is not None and connect("local", storage).find(name) is not None:
            raise SpecError(
                f"{name!r} is deployed on local and sagemaker: name one with --target, or another "
                "deployment with --name"
            )
        target = "local" if change is None else "sagemaker"
    if known_target(target) == "local":
        return Traffic(read_records(storage, name, since), target)

    from ray_jobs.deployments.sagemaker.capture import read_capture
    from ray_jobs.serving.model import load_model

    spec = None if change is None else change.description()
    deployment = None if spec is None else connect("sagemaker", storage, spec).find(name)
    if deployment is None or not deployment.variants:
        raise SpecError(
            f"no deployment {name!r} on SageMaker was made from {storage.uri!r}; look at "
            "emberline deployments, or name one with --name"
        )
    uri = deployment.details.get("capture")
    if uri is None:
        raise DataError(
            f"SageMaker captures no requests to {name!r}: set deployment.record.share, and deploy "
            "it again"
        )
    model = deployment.model
    release = fetch(storage, model, deployment.variants[0].version)
    scorer = load_model(release.bundle, digest=release.digest).scorer

    @cache
    def digest_of(version: str) -> str:
        try:
            return find_model(storage, model, version).tags.get(DIGEST_TAG, "")
        except SpecError:  # it was deleted since
            return ""

    has_shadow = partial(_has_shadow, History(storage, target, name).read())
    return Traffic(read_capture(uri, scorer, digest_of, has_shadow, since), target)


def _has_shadow(changes: Sequence[Change], time: datetime) -> bool:
    """Whether the challenger was a shadow at a time: the last change before it says."""
    before = [one for one in changes if one.event != "refused" and one.time <= time]
    spec = before[-1].spec if before else None
    challenger = spec["deployment"]["challenger"] if spec else None
    return challenger is not None and challenger["mode"] == "shadow"
