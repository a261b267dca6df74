"""What a run is doing, on stderr: a live table on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape

from ray_jobs.events import Follower
from ray_jobs.run import Run
from ray_jobs.storage import StorageUnavailable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table

_REDRAW_INTERVAL_S = 0.5
_REMOTE_INTERVAL_S = 5.0  # a look at an object store costs requests
_STEPS = {
    "prepare": "preparing data",
    "preflight": "checking everything once",
    "sweep": "sweeping",
    "train": "training",
    "ensemble": "combining members",
    "evaluate": "reading the test split",
    "register": "registering with MLflow",
}
_STYLES = {"PENDING": "dim", "RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red"}


class Display(ABC):
    """Follows a run's events. Use as a context manager and call `poll()` often."""

    def __init__(self, run: Run, console: Console):
        self._run = run
        self._console = console
        self._metric = run.spec.objective.metric
        self._step = "starting"
        self._journal = Follower(run.storage, run.folder)
        self._earlier = self._journal.read_new()  # of an earlier attempt
        self._started_at = time.monotonic()
        self._polled_at = 0.0
        self._live: Live | None = None
        self._spinner: Spinner | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live
            from rich.spinner import Spinner

            self._spinner = Spinner("dots")
            self._live = Live(
                self._screen(), console=self._console, transient=True, refresh_per_second=4
            )
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
        interval_s = _REDRAW_INTERVAL_S if self._run.storage.is_local else _REMOTE_INTERVAL_S
        if not force and time.monotonic() - self._polled_at < interval_s:
            return
        self._polled_at = time.monotonic()
        with suppress(StorageUnavailable):  # the run says so itself, if it cannot do without
            for event in self._journal.read_new():
                self._take(event)
        if self._live:
            self._live.update(self._screen())

    @abstractmethod
    def _table(self) -> RenderableType:
        """What stands below the title and the step."""

    def _summary(self) -> str:
        """A line below the title, if there is something to sum up."""
        return ""

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step_started":
            self._say(_STEPS.get(event["step"], event["step"]))
        elif kind == "progress":
            share = f"{event['done']:,} of {event['total']:,} {event['unit']}"
            self._step = f"{_STEPS.get(event['step'], event['step'])}: {share}"
        elif kind == "warning":
            whose = f"trial {event['trial']}: " if "trial" in event else ""
            self._note(f"[yellow]warning:[/] {whose}{escape(event['message'])}")

    def _say(self, step: str, detail: str = "") -> None:
        """Tell the step, and off a terminal also a detail."""
        new = step != self._step
        self._step = step
        if not self._live and (new or detail):
            self._note(detail or step)

    def _note(self, text: str) -> None:
        elapsed = time.monotonic() - self._started_at
        # On a terminal the words of a long line wrap whole; elsewhere it stays one line.
        self._console.print(
            f"[dim]{elapsed:6.1f} s[/]  {text}", highlight=False, soft_wrap=self._live is None
        )

    def waits(self, what: str) -> None:
        """Tell what the run waits for."""
        self._say(what)

    def _screen(self) -> RenderableType:
        from rich.console import Group

        assert self._spinner is not None
        self._spinner.update(text=f" {self._step}")
        elapsed = time.monotonic() - self._started_at
        title = f"[bold]{self._run.spec.workload}[/] {self._run.run_id}  [dim]{elapsed:.0f} s[/]"
        summary = self._summary()
        return Group(title, *([summary] if summary else []), self._spinner, self._table())


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


class Progress(Display):
    """The members of a run that trains."""

    def __init__(self, run: Run, console: Console):
        super().__init__(run, console)
        self._members = {name: _MemberState() for name in run.spec.families()}
        for event in self._earlier:
            if event["event"] == "member_ended" and event["status"] == "SUCCEEDED":
                ended = self._members[event["member"]]
                ended.status, ended.seconds = event["status"], event.get("seconds")
                ended.best = (event.get("metrics") or {}).get(self._metric)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] in ("member_started", "member_ended", "epoch"):
            self._take_member(self._members[event["member"]], event)
        else:
            super()._take(event)

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
                self._note(epoch_line(event, self._metric))
        else:
            member.status, member.seconds = event["status"], event.get("seconds")
            final = (event.get("metrics") or {}).get(self._metric)
            member.best = final if final is not None else member.best
            self._say(self._step, detail=f"{name}: {ending_line(event, self._metric)}")

    def _table(self) -> Table:
        left, *right = ("status", "epoch", f"val {self._metric}", "best", "patience", "")
        table = new_table(left=("member", left), right=right)
        for name, member in self._members.items():
            seconds = member.seconds
            if seconds is None and member.started_at is not None:
                seconds = time.monotonic() - member.started_at
            table.add_row(
                name,
                f"[{_STYLES[member.status]}]{member.status.lower()}[/]",
                f"{member.epoch}/{member.num_epochs}" if member.epoch else "",
                number(member.value),
                number(member.best),
                member.patience,
                f"{seconds:.0f} s" if seconds is not None else "",
            )
        return table


def new_table(*, left: tuple[str, ...], right: list[str], gap: int = 3) -> Table:
    """A table without rules, its first columns aligned left and its others right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def epoch_line(event: Mapping[str, Any], metric: str) -> str:
    """All that there is to know of an epoch, in one line."""
    parts = [f"epoch {event['epoch']}/{event['num_epochs']}"]
    if event.get("train"):
        parts.append(f"[bold]train[/] {_pairs(event['train'])}")
    if event["metrics"]:
        shown = {name.removeprefix("val_"): value for name, value in event["metrics"].items()}
        parts.append(f"[bold]val[/] {_pairs(shown)}")
    best = event.get("best")
    parts.append(f"[bold]best[/] {metric} {'—' if best is None else f'{best:.3f}'}")
    if event.get("patience"):
        parts.append(f"patience {event['patience']}")
    if event.get("learning_rate") is not None:
        parts.append(f"lr {event['learning_rate']:.2e}")
    if event.get("samples_per_second") is not None:
        parts.append(f"{event['samples_per_second']:,.0f}/s")
    if event.get("num_skipped_batches"):
        parts.append(f"[yellow]{event['num_skipped_batches']} skipped[/]")
    return "  ".join(parts)


def ending_line(event: Mapping[str, Any], metric: str) -> str:
    """How a member ended, when, and what it came to."""
    final = (event.get("metrics") or {}).get(metric)
    outcome = f"{metric} {number(final)}" if final is not None else event.get("reason") or ""
    seconds = f" in {event['seconds']:.1f} s" if event.get("seconds") is not None else ""
    return f"{event['status'].lower()}{seconds}, {escape(outcome)}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _pairs(values: Mapping[str, float]) -> str:
    """Names and values; several accuracies, as of several heads, by their heads' names."""
    num_accuracies = sum(name.endswith("_acc") for name in values)
    names = {name: name.removesuffix("_acc") if num_accuracies > 1 else name for name in values}
    return " ".join(f"[dim]{names[name]}[/] {value:.3f}" for name, value in values.items())
