"""What a run is doing, on stderr: a live table on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ray_jobs.events import read_events
from ray_jobs.run import Run

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_REDRAW_INTERVAL_S = 0.5
_STEPS = {
    "prepare": "preparing data",
    "preflight": "checking everything once",
    "train": "training",
    "ensemble": "combining members",
    "evaluate": "reading the test split",
    "register": "registering with MLflow",
}
_STYLES = {"PENDING": "dim", "RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red"}


@dataclass
class _MemberState:
    status: str = "PENDING"
    started_at: float | None = None
    seconds: float | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    value: float | None = None
    best: float | None = None
    patience: str = ""
    reason: str = ""


class Progress:
    """Follows a run's events. Use as a context manager and call `poll()` often."""

    def __init__(self, run: Run, console: Console):
        from rich.live import Live

        self._run = run
        self._console = console
        self._metric = run.spec.objective.metric
        self._members = {name: _MemberState() for name in run.spec.families()}
        self._step = "starting"
        self._num_seen = len(read_events(run.storage, run.folder))  # of an earlier attempt
        self._started_at = time.monotonic()
        self._polled_at = 0.0
        self._live = (
            Live(self._table(), console=console, transient=True, refresh_per_second=4)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.poll(force=True)
        if self._live:
            self._live.stop()

    def poll(self, *, force: bool = False) -> None:
        """Read what is new and show it."""
        if not force and time.monotonic() - self._polled_at < _REDRAW_INTERVAL_S:
            return
        self._polled_at = time.monotonic()
        events = read_events(self._run.storage, self._run.folder)
        for event in events[self._num_seen :]:
            self._take(event)
        self._num_seen = len(events)
        if self._live:
            self._live.update(self._table())

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step_started":
            self._say(_STEPS.get(event["step"], event["step"]))
        elif kind == "progress":
            share = f"{event['done']:,} of {event['total']:,} {event['unit']}"
            self._step = f"{_STEPS.get(event['step'], event['step'])}: {share}"
        elif kind == "warning":
            self._note(f"[yellow]warning:[/] {event['message']}")
        elif kind in ("member_started", "member_ended", "epoch"):
            self._take_member(self._members[event["member"]], event)

    def _take_member(self, member: _MemberState, event: dict[str, Any]) -> None:
        name = event["member"]
        if event["event"] == "member_started":
            member.status, member.started_at = "RUNNING", time.monotonic()
            self._say(
                "training members" if len(self._members) > 1 else "training: starting workers",
                detail=f"{name}: training",
            )
        elif event["event"] == "epoch":
            member.epoch, member.num_epochs = event["epoch"], event["num_epochs"]
            member.value = event["metrics"].get(self._metric)
            member.best, member.patience = event.get("best"), event.get("patience", "")
            if len(self._members) == 1:
                self._step = "training"
                self._note(_epoch_line(event, self._metric))
        else:
            member.status, member.seconds = event["status"], event.get("seconds")
            member.reason = event.get("reason") or ""
            final = (event.get("metrics") or {}).get(self._metric)
            member.best = final if final is not None else member.best
            outcome = f"{self._metric} {_number(final)}" if final is not None else member.reason
            seconds = f" in {member.seconds:.1f} s" if member.seconds is not None else ""
            self._say(self._step, detail=f"{name}: {member.status.lower()}{seconds}, {outcome}")

    def _say(self, step: str, detail: str = "") -> None:
        new = step != self._step
        self._step = step
        if not self._live and (new or detail):
            self._note(detail or step)

    def _note(self, text: str) -> None:
        elapsed = time.monotonic() - self._started_at
        self._console.print(f"[dim]{elapsed:6.1f} s[/]  {text}", highlight=False)

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.table import Table

        elapsed = time.monotonic() - self._started_at
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("member", "status", "epoch", f"val {self._metric}", "best", "patience", ""):
            table.add_column(column, justify="left" if column in ("member", "status") else "right")
        for name, member in self._members.items():
            seconds = member.seconds
            if seconds is None and member.started_at is not None:
                seconds = time.monotonic() - member.started_at
            table.add_row(
                name,
                f"[{_STYLES[member.status]}]{member.status.lower()}[/]",
                f"{member.epoch}/{member.num_epochs}" if member.epoch else "",
                _number(member.value),
                _number(member.best),
                member.patience,
                f"{seconds:.0f} s" if seconds is not None else "",
            )
        title = f"[bold]{self._run.spec.workload}[/] {self._run.run_id}  [dim]{elapsed:.0f} s[/]"
        return Group(title, Spinner("dots", text=f" {self._step}"), table)


def _epoch_line(event: dict[str, Any], metric: str) -> str:
    """All that there is to know of an epoch, in one line."""
    parts = [f"epoch {event['epoch']}/{event['num_epochs']}"]
    parts.append("train " + _pairs(event.get("train", {})))
    parts.append("val " + _pairs({k.removeprefix("val_"): v for k, v in event["metrics"].items()}))
    best = event.get("best")
    parts.append("best " + ("—" if best is None else _pairs({metric: best})))
    parts.append(f"patience {event.get('patience', '')}")
    parts.append(f"lr {event['learning_rate']:.2e}")
    parts.append(f"{event['samples_per_second']:,.0f}/s")
    if event.get("num_skipped_batches"):
        parts.append(f"[yellow]{event['num_skipped_batches']} skipped[/]")
    return "  ".join(parts)


def _pairs(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
