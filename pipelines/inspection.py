"""`emberline report` and `emberline compare`: looking at runs that have ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.training import command_of
from ray_jobs.errors import JobFailed
from ray_jobs.result import JobResult
from ray_jobs.run import REPORT, Run, find_run

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Report:
    """Where a report lies."""

    path: str
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return json.dumps({"report": self.path})

    def print(self, console: Console) -> None:
        console.print(self.path, soft_wrap=True)


def report(storage: str, run_id: str, *, open_it: bool) -> Report:
    """Render a run's report from its files, whatever its status, and show it if asked.

    Raises:
        SpecError: there is no such run.
        JobFailed: the run has not ended, or its result cannot be read.
    """
    from ray_jobs.evaluate import render

    run = find_run(storage, run_id)
    render(run, _result(run))
    path = run.storage.display(run.path(REPORT))
    if open_it:
        import webbrowser

        webbrowser.open(
            run.storage.local(run.path(REPORT)).as_uri() if run.storage.is_local else path
        )
    return Report(path)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    results: list[JobResult]
    settings: dict[str, list[Any]]  # key -> one value a run; only keys that differ
    tolerance: float  # of the objective, from run to run
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        rows = [json.loads(result.to_json()) for result in self.results]
        fields = {"runs": rows, "differences": self.settings, "tolerance": self.tolerance}
        return json.dumps(fields, indent=2)

    def _print_difference(self, console: Console) -> None:
        """Whether two runs differ by more than a repetition would."""
        first, second = self.results
        values = [_test_objective(result) for result in self.results]
        if first.objective != second.objective or None in values:
            return
        a, b = (value for value in values if value is not None)
        verdict = "within" if abs(a - b) <= self.tolerance else "more than"
        console.print(
            f"test {first.objective.metric} differs by {abs(a - b):.4f}, {verdict} the tolerance "
            f"of {self.tolerance:g} between repetitions"
        )

    def print(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("")
        for result in self.results:
            table.add_column(result.run_id, justify="right")
        table.add_row("status", *(result.status.lower() for result in self.results))
        names = {
            name: None
            for result in self.results
            for split in result.metrics.values()
            for name in split
        }
        for split in ("test", "val"):
            for name in names:
                table.add_row(f"{split} {name}", *(_cell(r, split, name) for r in self.results))
        strategies = [r.ensemble.strategy if r.ensemble else "—" for r in self.results]
        table.add_row("ensemble", *strategies)
        table.add_row("data", *(r.data.digest[:12] if r.data else "—" for r in self.results))
        for key, values in self.settings.items():
            table.add_row(f"[cyan]{key}[/]", *("—" if v is None else str(v) for v in values))
        console.print(table)
        if len(self.results) == 2:
            self._print_difference(console)
        tests = {r.data.splits["test"].digest for r in self.results if r.data}
        if len(tests) > 1:
            console.print("[yellow]warning:[/] these runs were tested on different rows")


def _test_objective(result: JobResult) -> float | None:
    metric = result.metrics.get("test", {}).get(result.objective.metric)
    return None if metric is None else metric.value


def compare(storage: str, run_ids: list[str]) -> Comparison:
    """Read runs and find where their job descriptions differ.

    Raises:
        SpecError: there is no such run.
        JobFailed: a run has not ended, or its result cannot be read.
    """
    from ray_jobs.run import flatten
    from ray_jobs.sweeping.winner import as_trained

    runs = [find_run(storage, run_id) for run_id in run_ids]
    results = [_result(run) for run in runs]
    trained = [as_trained(run) for run in runs]  # a sweep stands for its winner
    specs = [flatten(run.spec.model_dump(mode="json", exclude={"storage"})) for run in trained]
    keys = sorted(set().union(*specs))
    columns = {key: [spec.get(key) for spec in specs] for key in keys}
    differing = {key: values for key, values in columns.items() if len(set(map(str, values))) > 1}
    return Comparison(results, differing, max(run.spec.tolerance for run in runs))


def _result(run: Run) -> JobResult:
    try:
        result = run.read_result()
    except ValueError as error:
        raise JobFailed(str(error)) from None
    if result is None:
        raise JobFailed(
            f"run {run.run_id!r} has no result yet; if it was cut off, go on with: "
            f"emberline {command_of(run.spec)} {run.spec.workload} --resume --run-id {run.run_id}"
        )
    return result


def _cell(result: JobResult, split: str, name: str) -> str:
    metric = result.metrics.get(split, {}).get(name)
    if metric is None:
        return "—"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.4f}"
    return f"{metric.value:.4f} ({metric.low:.3f}–{metric.high:.3f})"
