"""Where the reaper looks: jobs that go on and name the pod that owns them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from ray_jobs.owners import OwnedJob, parse_owner
from ray_jobs.targets.kube import Kube
from ray_jobs.targets.rayjob_manifest import OWNED_LABEL
from ray_jobs.targets.rayjob_status import PREFIX, identity_of, made_at, parse_rayjob


class RayJobs:
    """Those of one namespace."""

    def __init__(self, kube: Kube, label: str):
        self.label, self._kube = label, kube

    def owned_jobs(self) -> Iterator[OwnedJob]:
        for found in self._kube.rayjobs(f"{OWNED_LABEL}=true"):
            identity, state = identity_of(found), parse_rayjob(found)
            owner = parse_owner(identity, PREFIX)
            is_over = state.is_deleting or (state.has_ended and state.fault is None)
            if owner is None or is_over:
                continue
            name = identity["name"]
            stop = partial(self._kube.delete_rayjob, name, state.uid)
            yield OwnedJob("rayjob", name, owner, made_at(found), stop)


class RayCluster:
    """Jobs of one Ray cluster."""

    def __init__(self, address: str):
        self.label = f"Ray cluster {address}"
        self._address = address

    def owned_jobs(self) -> Iterator[OwnedJob]:
        from ray_jobs.targets.ray import PREFIX as OF_METADATA
        from ray_jobs.targets.ray import RayTarget
        from ray_jobs.targets.ray_spec import RaySpec

        target = RayTarget(RaySpec(address=self._address))
        for job in target.unfinished_jobs():
            owner = parse_owner(job.metadata or {}, OF_METADATA)
            name = job.submission_id
            if owner is not None and name is not None:
                made = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
                stop = partial(target.stop_job, name, f"a job of {owner}")
                yield OwnedJob("ray", name, owner, made, stop)


class TrainingJobs:
    """Those of one AWS account and region."""

    def __init__(self, region: str | None):
        self.label = f"SageMaker{f' in {region}' if region else ''}"
        self._region = region

    def owned_jobs(self) -> Iterator[OwnedJob]:
        from ray_jobs.targets.sagemaker.aws import Aws
        from ray_jobs.targets.sagemaker.jobs import find_owned, stop
        from ray_jobs.targets.sagemaker.spec import SageMakerSpec

        aws = Aws(SageMakerSpec(region=self._region))
        for name, made, owner in find_owned(aws):
            yield OwnedJob("sagemaker", name, owner, made, partial(stop, aws, name))
