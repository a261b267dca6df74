"""How far a pipeline's run is: a table on a terminal, else a line for each change."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from pipelines.kubeflow import PipelineRun

_COLOURS = {"RUNNING": "cyan", "SUCCEEDED": "green", "SKIPPED": "dim", "FAILED": "red"}


class Display:
    """Shows a run on stderr for as long as it is followed."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None
        self._told: dict[str, str] = {}  # step -> the state that was told last
        self._waits: str | None = None
        self._run: PipelineRun | None = None
        self._started_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._table)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def show(self, run: PipelineRun) -> None:
        """The run as it is now."""
        self._run, self._waits = run, None
        if self._live:
            return
        states = {"the run": run.state.lower(), **{step.name: str(step) for step in run.steps}}
        for name, state in states.items():
            if self._told.get(name) != state:
                self._line(f"{name} {state}")
        self._told = states

    def waits(self, reason: str) -> None:
        """Nothing is known at the moment."""
        if self._waits is None and not self._live:
            self._line(reason)
        self._waits = reason

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._started_at
        self._console.print(f"{seconds:6.1f} s  {text}", soft_wrap=True, markup=False)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        if self._run is None:
            return table
        for step in self._run.steps:
            table.add_row(step.name, Text(str(step), _COLOURS.get(step.state, "")))
        seconds = time.monotonic() - self._started_at
        state = self._waits or self._run.state.lower()
        table.add_row("", Text(f"{state}, {seconds:.0f} s", "yellow" if self._waits else "bold"))
        return table
