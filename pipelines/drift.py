"""`emberline drift`: whether live traffic is what a version was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.drift import measure, parse_since, write_report
from ray_jobs.monitoring.drift import DriftReport, Finding

if TYPE_CHECKING:
    from rich.console import Console

_NUM_SHOWN = 12


@dataclass(frozen=True)
class DriftOutcome:
    """What the command prints, and its exit code: 7 on drift."""

    report: DriftReport
    output: Path | None

    @property
    def exit_code(self) -> int:
        return self.report.exit_code

    def to_json(self) -> str:
        return self.report.to_json()

    def print(self, console: Console) -> None:
        report = self.report
        if report.findings:
            self._print_findings(console)
        colour = {"drift": "red", "none": "green", "unknown": "yellow"}[report.status]
        console.print(f"[{colour}]{report.status}[/]: ", end="", soft_wrap=True)
        console.print(
            f"{report.model} version {report.version}, {report.num_rows:,} rows of "
            f"{report.source}: {report.reason}",
            soft_wrap=True,
            markup=False,
        )
        if report.num_skipped:
            console.print(f"[yellow]warning:[/] {report.num_skipped:,} skipped")
        if self.output:
            console.print(f"report: {self.output}", soft_wrap=True, markup=False)

    def _print_findings(self, console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for column in ("PSI", "limit", "p", "missing", "outside", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("says")
        colours = {"drift": "red", "none": "green", "unknown": "yellow"}
        for finding in self.report.findings[:_NUM_SHOWN]:
            said = Text(finding.status, colours[finding.status])
            table.add_row(Text(finding.name), *map(Text, _cells(finding)), said)
        console.print(table)
        if len(self.report.findings) > _NUM_SHOWN:
            console.print(f"... and {len(self.report.findings) - _NUM_SHOWN} more")


def _cells(finding: Finding) -> list[str]:
    psi, limit, outside = finding.psi, finding.psi_limit, finding.out_of_range_share
    return [
        "" if psi is None else f"{psi:.3f}",
        "" if limit is None else f"{limit:.3f}",
        f"{finding.p_adjusted:.2g}" if finding.tests else "",
        f"{finding.missing_share:.1%}",
        "" if outside is None else f"{outside:.1%}",
        f"{finding.effective_size:,.0f}",
    ]


def drift(
    storage: str,
    model: str,
    version: str | None,
    *,
    name: str | None = None,
    since: str | None = None,
    input: str | None = None,
    alpha: float,
    output: Path | None = None,
    target: str | None = None,
) -> DriftOutcome:
    """As `ray_jobs.drift.measure`; with `output`, the report is written there.

    Raises:
        EmberlineError: as there; or SpecError for `since` and `output`.
    """
    report = measure(
        storage,
        model,
        version=version,
        name=name,
        since=parse_since(since) if since else None,
        input=input,
        alpha=alpha,
        target=target,
    )
    if output:
        write_report(report, output)
    return DriftOutcome(report, output)
