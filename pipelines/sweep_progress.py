"""What a sweep is doing, on stderr: a live table of its trials, then the winner's training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipelines.progress import Display, ending_line, epoch_line, new_table, number
from ray_jobs.run import Run
from ray_jobs.sweeping.budget import count_epochs
from ray_jobs.sweeping.labels import config_text, short_keys, value_text
from ray_jobs.sweeping.rungs import rungs_of
from ray_jobs.sweeping.search import Config

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MAX_ROWS = 12
_LINES_BESIDE = 9  # of a terminal, for the title, the step, the notes and the prompt
_GAP = 2  # between columns
_STYLES = {
    "running": "cyan",
    "waiting": "yellow",
    "parked": "dim",
    "done": "green",
    "stopped": "dim",
    "failed": "red",
}
_ENDINGS = {"SUCCEEDED": "done", "STOPPED": "stopped", "FAILED": "failed"}


@dataclass
class _TrialState:
    status: str = "running"  # waiting: it is to go on, as soon as there is room
    config: Config = field(default_factory=dict)
    epoch: int = 0
    value: float | None = None
    best: float | None = None
    seconds: float = 0.0  # of training, in turns that are over
    turn: tuple[datetime, datetime] | None = None  # under way: its start, and when last heard of

    def end_turn(self) -> None:
        if self.turn is not None:
            self.seconds += (self.turn[1] - self.turn[0]).total_seconds()
            self.turn = None


class SweepProgress(Display):
    """The trials of a sweep, and the training of its winner."""

    def __init__(self, run: Run, console: Console):
        super().__init__(run, console)
        self._sweep = run.spec.sweep
        self._trials: dict[str, _TrialState] = {}
        self._winner = ""
        self._training = ""
        self._rungs = rungs_of(self._sweep)
        self._max_spent = count_epochs(self._sweep).most
        for event in self._earlier:
            if event["event"].startswith("trial_"):
                self._take_trial(event)
            elif event["event"] == "sweep_ended":
                self._winner = event["winner"]

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind.startswith("trial_"):
            line = self._take_trial(event)
            if line and (not self._live or self._trials[event["trial"]].status == "failed"):
                self._note(f"trial {event['trial']} {line}")
        elif kind in ("member_started", "member_ended", "epoch"):
            self._take_winner(event)
        else:
            if kind == "step_started" and event["step"] == "sweep":
                self._interrupt()
            elif kind == "sweep_ended":
                self._winner = event["winner"]
                self._say(self._step, detail=f"the winner is trial {self._winner}")
            super()._take(event)

    def _take_trial(self, event: dict[str, Any]) -> str:
        """Take up what is said of a trial; the line to tell of it, if any."""
        trial = self._trials.setdefault(event["trial"], _TrialState())
        kind, at = event["event"], datetime.fromisoformat(event["time"])
        trial.epoch = event["epoch"] if kind != "trial_promoted" else trial.epoch
        if kind in ("trial_started", "trial_resumed"):
            trial.end_turn()
            trial.status, trial.config, trial.turn = "running", event["config"], (at, at)
            begun = f"goes on from epoch {trial.epoch}" if trial.epoch else "started"
            return f"{begun}: {escape(config_text(trial.config))}"
        if kind == "trial_epoch":
            trial.value, trial.best = event["value"], event["best"]
            if trial.turn is not None:
                trial.turn = (trial.turn[0], at)
            return ""
        if kind == "trial_promoted":
            trial.status = "waiting" if trial.status == "parked" else trial.status
            return (
                f"promoted from epoch {event['epoch']} to {event['to_epoch']}: "
                f"{self._value(event['value'])}"
            )
        if trial.turn is not None:
            trial.turn = (trial.turn[0], at)
        trial.end_turn()
        trial.best = event["value"]
        if kind == "trial_paused":
            trial.status = "parked"
            return f"parked at epoch {trial.epoch}: {self._value(trial.best)}"
        was_parked = trial.status == "parked"
        if was_parked and event["status"] == "STOPPED":
            return ""  # for good, as the sweep is over
        trial.status, trial.config = _ENDINGS[event["status"]], event["config"]
        reason = f"; {escape(event['reason'])}" if event.get("reason") else ""
        return f"{trial.status} at epoch {trial.epoch}: {self._value(trial.best)}{reason}"

    def _take_winner(self, event: dict[str, Any]) -> None:
        name = f"winner, trial {self._winner}" if self._winner else "winner"
        if event["event"] == "epoch":
            line = epoch_line(event, self._metric)
            self._step = "training the winner"
        elif event["event"] == "member_ended":
            line = ending_line(event, self._metric)
        else:
            line = "training"
        self._training = f"{name}: {line}"
        if not self._live:
            self._note(self._training)

    def _interrupt(self) -> None:
        """What an attempt that was killed left running has yet to be resumed."""
        for trial in self._trials.values():
            if trial.status == "running":
                trial.status = "waiting"
                trial.end_turn()

    def _leaders(self) -> list[str]:
        """The trials with a value that did not fail, the best first."""
        sign = -1 if self._run.spec.objective.mode == "max" else 1
        ranked = [
            (sign * trial.best, name)
            for name, trial in self._trials.items()
            if trial.best is not None and trial.status != "failed"
        ]
        return [name for _, name in sorted(ranked)]

    def _summary(self) -> str:
        num_of = Counter(trial.status for trial in self._trials.values())
        num_of["not started"] = self._sweep.num_trials - len(self._trials)
        counts = " · ".join(
            f"{name} {num_of[name]:,}" for name in (*_STYLES, "not started") if num_of[name]
        )
        spent = sum(trial.epoch for trial in self._trials.values())
        most = self._max_spent
        return f"{counts}   epochs {spent:,} of at most {most:,} ({spent / most:.0%})"

    def _table(self) -> RenderableType:
        from rich.console import Group

        keys, num_hidden_keys = self._visible_keys()
        names = short_keys(self._sweep.space)
        table = new_table(
            left=("trial", "status"),
            right=["epoch", "rung", "value", "best", *(names[key] for key in keys), "time"],
            gap=_GAP,
        )
        shown = self._visible_trials()
        leader = next(iter(self._leaders()), None)
        for name in shown:
            trial = self._trials[name]
            rung = max((level for level in self._rungs if level <= trial.epoch), default=None)
            table.add_row(
                f"[bold]{name}[/]" if name == leader else name,
                f"[{_STYLES[trial.status]}]{trial.status}[/]",
                f"{trial.epoch}/{self._sweep.max_epochs}",
                f"{rung}" if rung else "",
                number(trial.value),
                f"[bold]{number(trial.best)}[/]" if name == leader else number(trial.best),
                *(escape(value_text(trial.config[key])) for key in keys),
                f"{_seconds(trial):.0f} s",
            )
        hidden = [trial.status for name, trial in self._trials.items() if name not in shown]
        below = []
        if hidden:
            counts = ", ".join(f"{num} {status}" for status, num in Counter(hidden).items())
            below.append(f"[dim]and {len(hidden)} more: {counts}[/]")
        if num_hidden_keys:
            left_out = [names[key] for key in self._sweep.space if key not in keys]
            below.append(f"[dim]no room for {escape(', '.join(left_out))}[/]")
        return Group(table, *below, *([self._training] if self._training else []))

    def _visible_trials(self) -> list[str]:
        """The running ones, then the best of the others, as far as there is room."""
        room = max(3, min(_MAX_ROWS, self._console.height - _LINES_BESIDE))
        leaders = self._leaders()
        running = [name for name, trial in self._trials.items() if trial.status == "running"]
        others = [name for name in leaders if name not in running]
        num_running = min(len(running), room - min(len(others), room // 3))
        running.sort(key=lambda name: leaders.index(name) if name in leaders else len(leaders))
        return [*sorted(running[:num_running]), *others[: room - num_running]]

    def _visible_keys(self) -> tuple[list[str], int]:
        """The hyperparameters that fit beside the other columns, and how many do not."""
        names = short_keys(self._sweep.space)
        room = self._console.width - len("0000  running  200/200  rung  0.0000  0.0000  00000 s")
        shown = []
        for key in self._sweep.space:
            texts = [value_text(t.config[key]) for t in self._trials.values() if t.config]
            room -= max(map(len, [names[key], *texts])) + _GAP
            if room < 0:
                break
            shown.append(key)
        return shown, len(self._sweep.space) - len(shown)

    def _value(self, value: float | None) -> str:
        return f"{self._metric} {number(value) or '—'}"


def _seconds(trial: _TrialState) -> float:
    running = (datetime.now(UTC) - trial.turn[0]).total_seconds() if trial.turn else 0.0
    return trial.seconds + running
