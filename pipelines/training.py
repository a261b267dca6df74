"""`emberline run`: start, attach to or resume a run here, and say how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pipelines.place import take_over
from ray_jobs.errors import SpecError
from ray_jobs.lifecycle import carry_out
from ray_jobs.result import JobResult, MetricValue, SweepSummary
from ray_jobs.run import REPORT, Run
from ray_jobs.sections import PLACE, JobSpec

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = (
    "f1", "macro_f1", "accuracy", "balanced_accuracy", "top3_accuracy", "precision", "recall",
    "auc", "log_loss", "ece", "composite_acc", "command_acc", "param_type_acc", "param_value_acc",
)  # fmt: skip


def start(spec: JobSpec, run_id: str | None) -> Outcome:
    """Run a job on this machine, or attach to it if its id has been run.

    Raises:
        EmberlineError: as the step that failed says.
        KeyboardInterrupt: after everything that the run had started has ended.
    """
    from rich.console import Console

    from pipelines import local
    from pipelines.displays import display

    console = Console(stderr=True, highlight=False)
    run = Run.create(spec, run_id)
    take_over(run)
    finished = run.read_result()
    if finished is not None and finished.status == "SUCCEEDED":
        console.print(f"run {run.run_id} is done; this is its result")
        return Outcome(run, finished)
    if not console.is_terminal:
        console.print(f"run {run.run_id} in {run.storage.display(run.folder)}")
    try:
        with display(run, console) as progress:
            result = carry_out(run, lambda: local.run(run, progress.poll), wait=progress.poll)
    except KeyboardInterrupt:
        console.print(
            f"interrupted: nothing is left running. Go on with: emberline {command_of(spec)} "
            f"{spec.workload} --resume --run-id {run.run_id}",
            soft_wrap=True,
        )
        raise
    return Outcome(run, result)


def command_of(spec: JobSpec) -> str:
    """Which command of `emberline` carries the job out."""
    return "sweep" if spec.sweeps else "run"


def unfinished(
    spec: JobSpec, run_id: str | None, *, chosen: bool, placed: bool
) -> tuple[JobSpec, str]:
    """The unfinished run to take up: the one named, or the newest of the workload. Its description
    and its id.

    Args:
        chosen: the user gave a description; it must then be the run's own.
        placed: the user says where it is to go on; else that is where it was.

    Raises:
        SpecError: there is no such run.
    """
    from ray_jobs.storage import Storage

    storage = Storage(spec.storage)
    if run_id is None:
        for folder in reversed(storage.list(spec.workload)):
            run = Run.at(f"{storage.uri}/{folder}")
            result = run.read_result()
            is_done = result is not None and result.status == "SUCCEEDED"
            if not is_done and run.spec.sweeps == spec.sweeps:
                run_id = run.run_id
                break
        else:
            kind = "sweep" if spec.sweeps else "run"
            raise SpecError(f"no unfinished {kind} of {spec.workload!r} under {spec.storage!r}")
    stored = Run.open(spec.storage, spec.workload, run_id).spec
    own = spec if chosen else stored
    place = spec if placed else stored
    return own.model_copy(update={key: getattr(place, key) for key in PLACE}), run_id


@dataclass(frozen=True)
class Outcome:
    """A finished run, to be shown."""

    run: Run
    result: JobResult
    job: Mapping[str, str] = field(default_factory=dict)  # what its target says of it
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return self.result.to_json()

    def print(self, console: Console) -> None:
        result, objective = self.result, self.result.objective.metric
        console.print(f"\n[bold]{result.workload}[/] {result.run_id}: {_headline(result)}")
        console.print(_scores(result))
        if result.rivals:
            console.print(_rivals(result))
        if result.classes.get("test"):
            console.print(_classes(result))
        if result.ensemble:
            console.print(_leaderboard(result, objective))
        if result.sweep:
            console.print(_sweep(result.sweep), soft_wrap=True, markup=False)
        for warning in result.warnings:
            console.print(f"[yellow]warning:[/] {warning}")
        for name in ("instance", "billable", "cost"):
            if name in self.job:
                console.print(f"{name:<8} {self.job[name]}", markup=False)
        if result.model:
            console.print(f"model    {result.model.uri} (alias challenger)")
        console.print(f"report   {self.run.storage.display(self.run.path(REPORT))}", soft_wrap=True)
        if result.sweep:
            page = self.run.storage.display(self.run.path("sweep.html"))
            console.print(f"sweep    {page}", soft_wrap=True)


def _headline(result: JobResult) -> str:
    if result.ensemble is None:
        (model,) = result.members
        best = f", epoch {model.best_epoch} of {model.num_epochs} is the best"
        return f"{result.status.lower()}{best if model.best_epoch else ''}"
    used = {name: weight for name, weight in result.ensemble.weights.items() if weight}
    chosen = (
        f"{result.ensemble.strategy} of {len(used)} members"
        if len(used) > 1
        else (f"the single member {next(iter(used))}")
    )
    return f"{result.status.lower()}, {chosen}"


def _scores(result: JobResult) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("", "test", "95 % interval", "validation", "gap"):
        table.add_column(column, justify="left" if not column else "right")
    val, test = (result.metrics.get(split, {}) for split in ("val", "test"))
    for name in _SHOWN:
        if name in val or name in test:
            table.add_row(
                name,
                _value(test.get(name)),
                _interval(test.get(name)),
                _value(val.get(name)),
                _gap(test.get(name), val.get(name)),
                style="bold" if name == result.objective.metric else "",
            )
    return table


def _classes(result: JobResult) -> object:
    """Each class that stands in test, the worst first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("class", "test f1", "precision", "recall", "rows"):
        table.add_column(column, justify="left" if column == "class" else "right")
    present = [scores for scores in result.classes["test"] if scores.support]
    for scores in sorted(present, key=lambda scores: -1.0 if scores.f1 is None else scores.f1):
        cells = (scores.f1, scores.precision, scores.recall)
        shown = ["—" if cell is None else f"{cell:.4f}" for cell in cells]
        table.add_row(scores.name, *shown, str(scores.support))
    return table


def _sweep(sweep: SweepSummary) -> str:
    """The winner, and what it cost."""
    values = ", ".join(
        f"{key.rpartition('.')[2]} {value:.3g}"
        if isinstance(value, float)
        else f"{key.rpartition('.')[2]} {value}"
        for key, value in sweep.config.items()
    )
    return (
        f"winner   trial {sweep.winner} of {sweep.num_trials}: {values}; "
        f"{sweep.num_epochs:,} epochs spent of {sweep.num_full_epochs:,} in full"
    )


def _leaderboard(result: JobResult, objective: str) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("member", "status", f"test {objective}", f"val {objective}", "weight", "time"):
        table.add_column(column, justify="left" if column in ("member", "status") else "right")
    weights = result.ensemble.weights if result.ensemble else {}
    for member in result.members:
        weight = weights.get(member.name)
        table.add_row(
            member.name,
            member.status.lower() if not member.reason else f"[red]failed[/]: {member.reason}",
            _value(member.metrics.get("test", {}).get(objective)),
            _value(member.metrics.get("val", {}).get(objective)),
            "" if weight is None else f"{weight:.3f}",
            "" if member.seconds is None else f"{member.seconds:.1f} s",
        )
    return table


def _rivals(result: JobResult) -> object:
    """The model on test beside what it is measured against."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("test")
    for column in ("model", *result.rivals):
        table.add_column(column, justify="right")
    columns = [result.metrics, *result.rivals.values()]
    for name in _SHOWN:
        values = [metrics.get("test", {}).get(name) for metrics in columns]
        if any(values):
            style = "bold" if name == result.objective.metric else ""
            table.add_row(name, *map(_value, values), style=style)
    return table


def _gap(test: MetricValue | None, val: MetricValue | None) -> str:
    """Test less validation."""
    return "—" if test is None or val is None else f"{test.value - val.value:+.4f}"


def _value(metric: MetricValue | None) -> str:
    return "—" if metric is None else f"{metric.value:.4f}"


def _interval(metric: MetricValue | None) -> str:
    if metric is None or metric.low is None or metric.high is None:
        return "—"
    return f"{metric.low:.4f} – {metric.high:.4f}"
