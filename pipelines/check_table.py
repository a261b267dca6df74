"""Checks as a table: a row each, a failed one with its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_jobs.checks import Checklist

if TYPE_CHECKING:
    from rich.console import Console


def print_checks(checklist: Checklist, console: Console) -> None:
    """A row for each check."""
    from rich.table import Table
    from rich.text import Text

    marks = {True: "[green]ok[/]", False: "[red]failed[/]", None: "[dim]–[/]"}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    for check in checklist.checks:
        fix = f"\n→ {check.fix}" if check.fix and check.passed is False else ""
        table.add_row(marks[check.passed], check.name, Text(check.found + fix, overflow="fold"))
    console.print(table)
