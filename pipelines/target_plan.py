"""`--dry-run` of a run at a target: the plan, and everything that can be known of the target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines import plan
from pipelines.check_table import print_checks
from ray_jobs.checks import Checklist
from ray_jobs.errors import PreflightError
from ray_jobs.storage import Storage
from ray_jobs.targets import connect

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.network_plan import NetworkPlan
    from ray_jobs.sections import JobSpec


@dataclass(frozen=True)
class TargetPlan:
    """What a run would do, and whether its target is ready for it."""

    target: str
    plan: plan.Plan | NetworkPlan
    checklist: Checklist

    @property
    def exit_code(self) -> int:
        return PreflightError.exit_code if self.checklist.failed else 0

    def to_json(self) -> str:
        target = {"name": self.target, "checks": self.checklist.to_dict()["checks"]}
        return json.dumps(json.loads(self.plan.to_json()) | {"target": target}, indent=2)

    def print(self, console: Console) -> None:
        self.plan.print(console)
        console.print(f"\n[bold]{self.target}[/]: nothing was created there")
        print_checks(self.checklist, console)


def make(spec: JobSpec) -> TargetPlan:
    """Plan a run on this machine, and check its target; nothing is written outside a temporary
    folder.

    Raises:
        SpecError: the description lacks what the target needs to be asked at all.
        PreflightError: the data cannot be used.
    """
    target = connect(spec.target, spec)
    with TemporaryDirectory(prefix="emberline-plan-") as folder:
        made = plan.make(spec, Storage(folder))
    return TargetPlan(spec.target, made, target.check(spec, seconds=seconds_of(made)))


def seconds_of(made: plan.Plan | NetworkPlan) -> float | None:
    """What a run is estimated to take on this machine; None where a check of it has failed: what
    does not fit here may well fit there."""
    if isinstance(made, plan.Plan):
        return made.seconds
    if made.checklist.failed or made.checklist.estimate is None:
        return None
    return (
        made.checklist.sweep.seconds[1] if made.checklist.sweep else made.checklist.estimate.total_s
    )
