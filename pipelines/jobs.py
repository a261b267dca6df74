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
    """The runs named, or else the newest, the newest last; and how many older ones are left out."""
    runs = [find_run(storage, run_id) for run_id in run_ids]
    num_older = 0
    if not run_ids:
        folders = _folders(Storage(storage))
        num_older = max(0, len(folders) - MOST_SHOWN)
        runs = _open(Storage(storage), folders[num_older:])
    jobs = []
    for run in runs:
        target = connect(run.spec.target, run.spec)
        jobs.append(Job(target, target.handle(run)))
    return jobs, num_older


def runs_under(root: str) -> list[Run]:
    """Every run of this version under a storage root, the newest last."""
    storage = Storage(root)
    return _open(storage, _folders(storage))


def _folders(storage: Storage) -> list[str]:
    """The folders of runs, by the time at which they were submitted."""
    from pyarrow.fs import FileType

    folders = [folder for workload in workloads.NAMES for folder in storage.list(workload)]
    specs = storage.filesystem.get_file_info([storage.full(f"{each}/{SPEC}") for each in folders])
    made = [
        (info.mtime_ns or 0, folder)
        for folder, info in zip(folders, specs, strict=True)
        if info.type != FileType.NotFound
    ]
    return [folder for _, folder in sorted(made)]


def _open(storage: Storage, folders: Sequence[str]) -> list[Run]:
    runs = []
    for folder in folders:
        try:
            runs.append(Run.at(f"{storage.uri}/{folder}"))
        except SpecError:  # of an older version, which is not carried out any more
            continue
    return runs
