"""`emberline status`: how far runs are, wherever they are carried out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.jobs import Job, find_jobs
from pipelines.remote import error_of, last_lines
from ray_jobs.checks import duration
from ray_jobs.errors import EXIT_OK
from ray_jobs.result import JobResult, Metrics
from ray_jobs.targets.base import JobState, Watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SIDE_BY_SIDE = 8  # targets that are asked at once
_DETAILS = ("attempt", "instance", "billable", "spot savings", "interruptions", "cost")
_STYLES = {
    "PENDING": "dim",
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "STOPPED": "yellow",
}


@dataclass(frozen=True)
class JobStatus:
    """One look at a run."""

    job: Job
    state: JobState
    metrics: dict[str, Metrics] = field(default_factory=dict)
    log: Sequence[str] = ()  # its last lines, if it failed

    @property
    def elapsed_s(self) -> float | None:
        """From its start to its end, or to now."""
        if self.state.started_at is None:
            return None
        end = self.state.ended_at or datetime.now(UTC)
        return (end - self.state.started_at).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        handle, state = self.job.handle, self.state
        return {
            "run_id": handle.run_id,
            "workload": handle.workload,
            "storage": handle.storage,
            "target": handle.target,
            "name": handle.name,
            "status": state.status,
            "secondary": state.secondary,
            "reason": state.reason,
            "started_at": state.started_at.isoformat() if state.started_at else None,
            "ended_at": state.ended_at.isoformat() if state.ended_at else None,
            "elapsed_s": self.elapsed_s,
            "details": dict(state.details),
            "metrics": {
                split: {name: value.model_dump() for name, value in metrics.items()}
                for split, metrics in self.metrics.items()
            },
            "log": list(self.log),
        }


@dataclass(frozen=True)
class Statuses:
    """Runs, and how far they are."""

    statuses: list[JobStatus]
    num_older: int = 0  # that are not shown

    @property
    def exit_code(self) -> int:
        """That of the first run that failed; else of the first that was stopped."""
        for status in ("FAILED", "STOPPED"):
            for found in self.statuses:
                if found.state.status == status:
                    return error_of(found.state).exit_code
        return EXIT_OK

    def to_json(self) -> str:
        return json.dumps([status.to_dict() for status in self.statuses], indent=2)

    def print(self, console: Console) -> None:
        if not self.statuses:
            console.print("no runs here; --storage names the root that they were started with")
            return
        console.print(table_of(self.statuses))
        if self.num_older:
            console.print(f"[dim]{self.num_older} older runs are not shown; name one to see it[/]")
        for status in self.statuses:
            if status.state.status != "FAILED":
                continue
            reason = f"{status.job.handle.run_id}: {status.state.reason}"
            console.print(f"\n{reason}", style="red", markup=False, soft_wrap=True)
            for line in status.log:
                console.print(f"| {line}", style="dim", markup=False, soft_wrap=True)


def table_of(statuses: Sequence[JobStatus]) -> Table:
    """A row for each run; a column only where a run has something in it."""
    from rich.table import Table

    details = [key for key in _DETAILS if any(key in s.state.details for s in statuses)]
    metrics = [
        (split, s.job.handle.open().spec.objective.metric) for s in statuses for split in s.metrics
    ]
    columns = list(dict.fromkeys(metrics))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("run", "target", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("elapsed", *details, *(f"{split} {metric}" for split, metric in columns)):
        table.add_column(name, justify="right", no_wrap=True)
    for status in statuses:
        handle, state = status.job.handle, status.state
        elapsed = status.elapsed_s
        said = state.status.lower() if state.is_submitted else "not submitted"
        secondary = f" [dim]{state.secondary}[/]" if state.secondary else ""
        table.add_row(
            str(status.job),
            handle.target,
            f"[{_STYLES[state.status]}]{said}[/]{secondary}",
            "" if elapsed is None else duration(elapsed),
            *(state.details.get(key, "") for key in details),
            *(_value(status.metrics, split, metric) for split, metric in columns),
        )
    return table


def status(
    storage: str, run_ids: Sequence[str], *, wait: bool, interval_s: float, with_metrics: bool
) -> Statuses:
    """How far runs are: those named, or the newest under a storage root.

    Args:
        wait: until all have ended; runs that nobody has submitted are not waited for.

    Raises:
        SpecError: there is no such run.
        EmberlineError: as the targets say.
    """
    from rich.console import Console

    jobs, num_older = find_jobs(storage, run_ids)
    watches = [Watch(job.target, job.handle) for job in jobs]
    states: list[JobState | None] = [None] * len(jobs)

    def look(number: int) -> None:
        state = states[number]
        if state is None or not (state.has_ended or not state.is_submitted):
            states[number] = watches[number].look() if wait else _status(jobs[number]) or state

    def found() -> list[JobStatus]:
        return [JobStatus(job, state) for job, state in zip(jobs, states, strict=True) if state]

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        list(pool.map(look, range(len(jobs))))
        if wait:
            _wait(pool, look, states, found, interval_s, Console(stderr=True, highlight=False))
        complete = [*pool.map(lambda s: _complete(s, with_metrics), found())]
    return Statuses(complete, num_older)


def _wait(
    pool: ThreadPoolExecutor,
    look: Callable[[int], None],
    states: list[JobState | None],
    found: Callable[[], list[JobStatus]],
    interval_s: float,
    console: Console,
) -> None:
    """Look again until all have ended: a live table on a terminal, a line a change elsewhere."""
    from rich.live import Live

    told: dict[str, str] = {}

    def tell() -> None:
        for status in found():
            handle, state = status.job.handle, status.state
            said = " ".join(filter(None, (state.status.lower(), state.secondary)))
            if told.get(handle.name) != said:
                told[handle.name] = said
                console.print(f"{status.job}: {said}", markup=False)

    def ended(state: JobState | None) -> bool:
        return state is not None and (state.has_ended or not state.is_submitted)

    live = Live(console=console, transient=True, auto_refresh=False)
    if console.is_terminal:
        live.start()
    try:
        while True:
            if console.is_terminal:
                live.update(table_of(found()), refresh=True)
            else:
                tell()
            if all(map(ended, states)):
                return
            time.sleep(interval_s)
            list(pool.map(look, range(len(states))))
    finally:
        live.stop()


def _status(job: Job) -> JobState:
    return job.target.status(job.handle)


def _complete(status: JobStatus, with_metrics: bool) -> JobStatus:
    """With the metrics of a run that has ended well, and the last words of one that failed."""
    target, handle = status.job.target, status.job.handle
    if status.state.status == "FAILED":
        return JobStatus(status.job, status.state, log=last_lines(target, handle))
    if with_metrics and status.state.status == "SUCCEEDED":
        result: JobResult = target.result(handle)
        return JobStatus(status.job, status.state, metrics=result.metrics)
    return status


def _value(metrics: dict[str, Metrics], split: str, metric: str) -> str:
    found = metrics.get(split, {}).get(metric)
    return "" if found is None else f"{found.value:.4f}"
