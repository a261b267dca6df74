"""`emberline promote`, `rollback` and `reconcile`: what came of them, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_jobs.deploy import settle
from ray_jobs.promote import Promotion, Refused
from ray_jobs.promote import promote as promote_version
from ray_jobs.promote import rollback as roll_back

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.sections import JobSpec
    from ray_jobs.tracking.gate import Verdict
    from ray_jobs.tracking.handmoves import Reconciled


@dataclass(frozen=True)
class PromotionOutcome:
    """What a command about champions prints, and its exit code."""

    promotion: Promotion

    @property
    def exit_code(self) -> int:
        return self.promotion.exit_code

    def to_json(self) -> str:
        return self.promotion.to_json()

    def print(self, console: Console) -> None:
        for warning in self.promotion.warnings:
            print_warning(console, warning)
        print_verdicts(console, self.promotion.verdicts)
        console.print(self._sentence(), soft_wrap=True)

    def _sentence(self) -> str:
        promotion = self.promotion
        name = f"version {promotion.version} of {promotion.model}"
        before = "none" if promotion.champion is None else f"version {promotion.champion}"
        match promotion.outcome:
            case "promoted":
                return f"[bold]{name}[/] is the champion; before: {before}"
            case "rolled_back":
                return f"[bold]{name}[/] is the champion again; before: {before}"
            case "unchanged":
                return f"[bold]{name}[/] is the champion already"
            case "accepted":
                return f"[bold]{name}[/] passes; the champion is still {before} (dry run)"
            case "refused":
                return f"[bold]{name}[/] is refused; the champion is still {before}"


@dataclass(frozen=True)
class ReconcileOutcome:
    """What a look at the champion prints, and its exit code."""

    reconciled: Reconciled

    @property
    def exit_code(self) -> int:
        return self.reconciled.exit_code

    def to_json(self) -> str:
        return self.reconciled.to_json()

    def print(self, console: Console) -> None:
        found = self.reconciled
        print_verdicts(console, found.verdicts)
        if found.warning is not None:
            print_warning(console, found.warning)
        now = "none" if found.champion is None else f"version {found.champion}"
        console.print(f"the champion of {found.model} is [bold]{now}[/]", soft_wrap=True)


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """The gate's verdicts as a table, and below it what is to be said of each."""
    from rich.table import Table
    from rich.text import Text

    if not verdicts:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("rule", "found", "limit", "verdict"):
        table.add_column(column)
    for verdict in verdicts:
        said = Text("passed", "green") if verdict.passed else Text("refused", "red")
        table.add_row(verdict.rule, Text(verdict.value), Text(verdict.limit), said)
    console.print(table)
    for verdict in verdicts:
        if verdict.why:
            colour = "yellow" if verdict.passed else "red"
            line = Text.assemble((f"{verdict.rule}: ", colour), verdict.why)
            console.print(line, soft_wrap=True)


def print_warning(console: Console, warning: str) -> None:
    """A warning, in a line of its own."""
    from rich.text import Text

    console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def promote(
    where: JobSpec | str, model: str, version: int | None = None, *, dry_run: bool = False
) -> PromotionOutcome:
    """As `ray_jobs.promote.promote`; a refusal is an outcome, too.

    Raises:
        EmberlineError: as there, but for `Refused`.
    """
    try:
        return PromotionOutcome(promote_version(where, model, version, dry_run=dry_run))
    except Refused as refused:
        return PromotionOutcome(refused.promotion)


def rollback(where: JobSpec | str, model: str) -> PromotionOutcome:
    """As `ray_jobs.promote.rollback`."""
    return PromotionOutcome(roll_back(where, model))


def reconcile(where: JobSpec | str, model: str, overrides: Sequence[str] = ()) -> ReconcileOutcome:
    """As `ray_jobs.deploy.settle`."""
    return ReconcileOutcome(settle(where, model, overrides))
