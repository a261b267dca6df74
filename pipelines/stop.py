"""`emberline stop`: runs ended with a checkpoint, wherever they are carried out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.jobs import Job, find_jobs, runs_under
from pipelines.remote import where
from ray_jobs.errors import EXIT_OK, EmberlineError, RetryableError, SpecError
from ray_jobs.run import Run
from ray_jobs.targets import NAMES, connect
from ray_jobs.targets.base import Handle, JobState
from ray_jobs.targets.ray_spec import RaySpec
from ray_jobs.targets.rayjob_spec import RayJobSpec
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

if TYPE_CHECKING:
    from rich.console import Console

_SIDE_BY_SIDE = 8  # jobs that are stopped at once


@dataclass(frozen=True)
class Stopping:
    """What was stopped, and what was not."""

    stopped: list[Handle]
    ended: list[Handle]  # before
    failed: dict[str, EmberlineError]  # run -> why it could not be stopped
    looked_at: list[str]

    @property
    def exit_code(self) -> int:
        return RetryableError.exit_code if self.failed else EXIT_OK

    def to_json(self) -> str:
        return json.dumps(
            {
                "stopped": [_named(handle) for handle in self.stopped],
                "ended_before": [_named(handle) for handle in self.ended],
                "failed": {run: str(error) for run, error in self.failed.items()},
                "looked_at": self.looked_at,
            },
            indent=2,
        )

    def print(self, console: Console) -> None:
        for handle in self.stopped:
            console.print(f"stopped {_run(handle)} on {where(handle)}", soft_wrap=True)
        for handle in self.ended:
            console.print(f"{_run(handle)} on {where(handle)} had ended", soft_wrap=True)
        for run, error in self.failed.items():
            console.print(f"[red]not stopped:[/] {run}: {error}", soft_wrap=True)
        if not (self.stopped or self.ended or self.failed):
            console.print("nothing is running")
        for line in self.looked_at:
            console.print(f"[dim]looked at {line}[/]", soft_wrap=True)


def stop(storage: str, run_ids: Sequence[str]) -> Stopping:
    """Stop runs; returns when they have ended.

    Raises:
        SpecError: there is no such run.
    """
    jobs, _ = find_jobs(storage, run_ids)
    return _stop(jobs, [])


def stop_all(storage: str, only: str | None, address: str | None) -> Stopping:
    """Stop every run that this project has started: on this machine under a storage root; on the
    Ray clusters, in the namespaces of Kubernetes and in the AWS regions of the runs there; and
    where the environment points to.

    Args:
        only: one target.
        address: of a Ray cluster beside those.

    Raises:
        SpecError: there is no such target.
    """
    if only is not None and only not in NAMES:
        raise SpecError(f"no target {only!r}; there is {', '.join(NAMES)}")
    jobs: list[Job] = []
    failed: dict[str, EmberlineError] = {}
    looked_at = []
    for label, place, is_certain in _places(storage, only, address):
        try:
            target = connect(place.target, place)
            handles = target.list()
        except EmberlineError as error:
            if is_certain:
                failed[label] = error
            else:
                looked_at.append(f"{label}: no ({error})")
            continue
        looked_at.append(f"{label}: {len(handles)} runs of this project")
        jobs += [Job(target, handle) for handle in handles]
    done = _stop(jobs, looked_at, tell_ended=False)
    return Stopping(done.stopped, done.ended, failed | done.failed, looked_at)


def _stop(jobs: Sequence[Job], looked_at: list[str], *, tell_ended: bool = True) -> Stopping:
    stopped: list[Handle] = []
    ended: list[Handle] = []
    failed: dict[str, EmberlineError] = {}

    def end(job: Job) -> None:
        try:
            state = _unknown_if_gone(job)
            if state is None or (state.is_submitted and not state.has_ended):
                job.target.stop(job.handle)
                stopped.append(job.handle)
            elif tell_ended:
                ended.append(job.handle)
        except EmberlineError as error:
            failed[str(job)] = error

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        list(pool.map(end, jobs))
    return Stopping(stopped, ended, failed, looked_at)


def _unknown_if_gone(job: Job) -> JobState | None:
    """The run's state; None if its folder is gone, which its job may not be."""
    try:
        return job.target.status(job.handle)
    except SpecError:
        return None


def _run(handle: Handle) -> str:
    return f"{handle.workload}/{handle.run_id}"


def _named(handle: Handle) -> dict[str, str]:
    return {"run": _run(handle), "target": handle.target, "name": handle.name}


def _is_done(run: Run) -> bool:
    try:
        result = run.read_result()
    except ValueError:
        return False
    return result is not None and result.status == "SUCCEEDED"


@dataclass(frozen=True)
class _Place:
    """What a target is connected by."""

    target: str
    storage: str
    ray: RaySpec = field(default_factory=RaySpec)
    rayjob: RayJobSpec = field(default_factory=RayJobSpec)
    sagemaker: SageMakerSpec = field(default_factory=SageMakerSpec)


def _places(
    storage: str, only: str | None, address: str | None
) -> Iterator[tuple[str, _Place, bool]]:
    """Where runs of this project may be: a label, what to connect with, and whether it is certain
    that there is such a place."""
    if only in (None, "local"):
        yield f"this machine, {storage}", _Place("local", storage), True
    specs = [run.spec for run in runs_under(storage) if not _is_done(run)]
    addresses = {spec.ray.address: spec.ray for spec in specs if spec.target == "ray"}
    for given in (address, os.environ.get("RAY_API_SERVER_ADDRESS")):
        if given:
            addresses.setdefault(given, RaySpec(address=given))
    if only in (None, "ray"):
        for where_, settings in addresses.items():
            yield f"Ray cluster {where_}", _Place("ray", storage, ray=settings), True
    if only in (None, "rayjob"):
        namespaces = {
            (spec.rayjob.context, spec.rayjob.namespace): spec.rayjob
            for spec in specs
            if spec.target == "rayjob"
        }
        if only == "rayjob" and not namespaces:
            namespaces[None, None] = RayJobSpec()
        for names, settings in namespaces.items():
            label = f"RayJobs in {' '.join(filter(None, names)) or 'the current namespace'}"
            yield label, _Place("rayjob", storage, rayjob=settings), True
    if only in (None, "sagemaker"):
        regions = {
            spec.sagemaker.region: spec.sagemaker for spec in specs if spec.target == "sagemaker"
        }
        is_certain = bool(regions) or only == "sagemaker"
        for region, settings in (regions or {None: SageMakerSpec()}).items():
            label = f"SageMaker{f' in {region}' if region else ''}"
            yield label, _Place("sagemaker", storage, sagemaker=settings), is_certain
