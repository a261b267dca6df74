"""`emberline status`: how far runs are, wherever they are carried out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipelines.jobs import Job, find_jobs
from pipelines.remote import error_of, last_lines
from ray_jobs.checks import duration
from ray_jobs.errors import EXIT_OK, EmberlineError
from ray_jobs.result import Metrics
from ray_jobs.targets.base import JobState, Watch

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

_SIDE_BY_SIDE = 8  # targets that are asked at once
_DETAILS = (
    "members", "attempt", "instance", "trained", "billable", "spot savings", "interruptions",
    "cost",
)  # fmt: skip
_SAY_THEMSELVES = ("members", "instance")
_STYLES: dict[str | None, str] = {
    None: "red",
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
    state: JobState | None  # None: it is not known
    error: EmberlineError | None = None  # why it is not
    metrics: dict[str, Metrics] = field(default_factory=dict)
    log: Sequence[str] = ()  # its last lines, if it failed

    @property
    def elapsed_s(self) -> float | None:
        """From its start to its end, or to now."""
        if self.state is None or self.state.started_at is None:
            return None
        end = self.state.ended_at or datetime.now(UTC)
        return (end - self.state.started_at).total_seconds()

    @property
    def is_over(self) -> bool:
        """Nothing will change by itself."""
        if self.state is None:
            return self.error is not None
        return self.state.has_ended or not self.state.is_submitted

    @property
    def word(self) -> str:
        if self.state is None:
            return "unknown"
        return self.state.status.lower() if self.state.is_submitted else "not submitted"

    @property
    def secondary(self) -> str:
        """The service's own word, where it says more than ours."""
        word = (self.state.secondary if self.state else None) or ""
        return "" if self.word in (word.lower(), "succeeded") else word

    @property
    def reason(self) -> str | None:
        """Why it failed, or why it is not known how it is."""
        if self.state is None:
            return str(self.error) if self.error else None
        return self.state.reason if self.state.status == "FAILED" else None

    @property
    def details(self) -> str:
        """What the target says beside, such as the instance and the cost."""
        found = self.state.details if self.state else {}
        return ", ".join(
            found[key] if key in _SAY_THEMSELVES else f"{key} {found[key]}"
            for key in _DETAILS
            if key in found and (key, found[key]) != ("attempt", "1")
        )

    def to_dict(self) -> dict[str, Any]:
        handle, state = self.job.handle, self.state
        return {
            "run_id": handle.run_id,
            "workload": handle.workload,
            "storage": handle.storage,
            "target": handle.target,
            "name": handle.name,
            "status": state.status if state else None,
            "is_submitted": state.is_submitted if state else None,
            "secondary": state.secondary if state else None,
            "reason": state.reason if state else self.reason,
            "started_at": state.started_at.isoformat() if state and state.started_at else None,
            "ended_at": state.ended_at.isoformat() if state and state.ended_at else None,
            "elapsed_s": self.elapsed_s,
            "details": dict(state.details) if state else {},
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
    is_list: bool = False  # nobody asked for a certain run: an old failure is no news

    @property
    def exit_code(self) -> int:
        """That of the first run that failed, or that is not known; else of the first that was
        stopped."""
        if self.is_list:
            return EXIT_OK
        for found in self.statuses:
            if found.error is not None:
                return found.error.exit_code
        for status in ("FAILED", "STOPPED"):
            for found in self.statuses:
                if found.state is not None and found.state.status == status:
                    return error_of(found.state).exit_code
        return EXIT_OK

    def to_json(self) -> str:
        return json.dumps([status.to_dict() for status in self.statuses], indent=2)

    def print(self, console: Console) -> None:
        if not self.statuses:
            console.print("no runs here; --storage names the root that they were started with")
            return
        console.print(overview(self.statuses))
        if self.num_older:
            console.print(f"[dim]{self.num_older} older runs are not shown; name one to see it[/]")
        for status in self.statuses:
            if status.reason is None:
                continue
            reason = f"\n{status.job}: {status.reason}"
            console.print(reason, style="red", markup=False, soft_wrap=True)
            for line in status.log:
                console.print(f"| {line}", style="dim", markup=False, soft_wrap=True)


def overview(statuses: Sequence[JobStatus]) -> Group:
    """A row for each run, then what the targets say beside."""
    from rich.console import Group
    from rich.text import Text

    said = [
        Text(f"{status.job}: {status.details}", style="dim", overflow="fold")
        for status in statuses
        if status.details
    ]
    return Group(_table(statuses), *said)


def _table(statuses: Sequence[JobStatus]) -> Table:
    from rich.table import Table

    scores = [
        (split, status.job.handle.open().spec.objective.metric)
        for status in statuses
        for split in status.metrics
    ]
    columns = list(dict.fromkeys(scores))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("run", "target", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("elapsed", *(f"{split} {metric}" for split, metric in columns)):
        table.add_column(name, justify="right", no_wrap=True)
    for status in statuses:
        elapsed, style = status.elapsed_s, _STYLES[status.state.status if status.state else None]
        secondary = f" [dim]{escape(status.secondary)}[/]" if status.secondary else ""
        table.add_row(
            str(status.job),
            status.job.handle.target,
            f"[{style}]{status.word}[/]{secondary}",
            "" if elapsed is None else duration(elapsed),
            *(_value(status.metrics, split, metric) for split, metric in columns),
        )
    return table


def _value(metrics: dict[str, Metrics], split: str, metric: str) -> str:
    found = metrics.get(split, {}).get(metric)
    return "" if found is None else f"{found.value:.4f}"


class _Followed:
    """A run that is looked at again and again, until it is over."""

    def __init__(self, job: Job, *, drives: bool):
        self._watch = Watch(job.target, job.handle) if drives else None
        self.status = JobStatus(job, None)

    def look(self) -> None:
        if self.status.is_over:
            return
        job = self.status.job
        try:
            state = self._watch.look() if self._watch else job.target.status(job.handle)
        except EmberlineError as error:
            self.status = JobStatus(job, None, error)
        else:
            self.status = replace(self.status, state=state or self.status.state)

    def complete(self, with_metrics: bool) -> JobStatus:
        """With the metrics of a run that ended well, and the last words of one that failed."""
        status = self.status
        target, handle = status.job.target, status.job.handle
        if status.state is not None and status.state.status == "FAILED":
            return replace(status, log=last_lines(target, handle))
        if with_metrics and status.state is not None and status.state.status == "SUCCEEDED":
            return replace(status, metrics=target.result(handle).metrics)
        return status


def status(
    storage: str, run_ids: Sequence[str], *, wait: bool, interval_s: float, with_metrics: bool
) -> Statuses:
    """How far runs are: those named, or the newest under a storage root.

    Args:
        wait: until all have ended, submitting what is due; runs that nobody has submitted are not
            waited for.

    Raises:
        SpecError: there is no such run.
    """
    jobs, num_older = find_jobs(storage, run_ids)
    runs = [_Followed(job, drives=wait) for job in jobs]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:

        def look() -> list[JobStatus]:
            list(pool.map(_Followed.look, runs))
            return [run.status for run in runs]

        statuses = look()
        if wait and statuses:
            _wait(look, statuses, interval_s)
        complete = [*pool.map(lambda run: run.complete(with_metrics), runs)]
    return Statuses(complete, num_older, is_list=not run_ids and not wait)


def _wait(
    look: Callable[[], list[JobStatus]], statuses: list[JobStatus], interval_s: float
) -> None:
    """Look until all are over: a live table on a terminal, a line a change elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    told: dict[str, str] = {}

    def tell(statuses: list[JobStatus]) -> None:
        for status in statuses:
            said = f"{status.word} {status.secondary}".rstrip()
            if told.get(str(status.job)) != said:
                told[str(status.job)] = said
                console.print(f"{status.job}: {said}", markup=False)

    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(overview(statuses), refresh=True)
            else:
                tell(statuses)
            if all(status.is_over for status in statuses):
                return
            time.sleep(interval_s)
            statuses = look()
