"""Jobs: runs, wherever they are carried out; and `emberline logs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_jobs import workloads
from ray_jobs.errors import SpecError
from ray_jobs.run import SPEC, Run, find_run
from ray_jobs.storage import Storage
from ray_jobs.targets import connect
from ray_jobs.targets.base import Handle, Target

MOST_SHOWN = 20


@dataclass(frozen=True)
class Job:
    """A run, and where it is carried out."""

    target: Target
    handle: Handle

    def __str__(self) -> str:
        return f"{self.handle.workload}/{self.handle.run_id}"


def logs(storage: str, run_id: str, *, follow: bool) -> Iterator[str]:
    """A run's log, line by line.

    Raises:
        SpecError: there is no such run.
        EmberlineError: as its target says.
    """
    ((job,), _) = find_jobs(storage, [run_id])
    return job.target.logs(job.handle, follow=follow)


def find_jobs(storage: str, run_ids: Sequence[str]) -> tuple[list[Job], int]:
    """The runs, and how many older ones were left out."""
    runs = [find_run(storage, run_id) for run_id in run_ids]
    num_older = 0
    if not run_ids:
        runs = sorted(runs_under(storage), key=lambda run: run.run_id)
        num_older = max(0, len(runs) - MOST_SHOWN)
        runs = runs[num_older:]
    jobs = []
    for run in runs:
        target = connect(run.spec.target, run.spec)
        jobs.append(Job(target, target.handle(run)))
    return jobs, num_older


def runs_under(root: str) -> Iterator[Run]:
    """Those of this version under a storage root."""
    storage = Storage(root)
    for workload in workloads.NAMES:
        for folder in storage.list(workload):
            if not storage.exists(f"{folder}/{SPEC}"):
                continue
            try:
                yield Run.at(f"{storage.uri}/{folder}")
            except SpecError:
                continue
