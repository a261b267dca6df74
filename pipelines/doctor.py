"""`emberline doctor`: is this machine ready? One row a check, each failure with its fix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.check_table import print_checks
from ray_jobs import checks
from ray_jobs.checks import GIB, Checklist
from ray_jobs.errors import PreflightError
from ray_jobs.ray_runtime import spin_briefly

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.result import DataSummary
    from ray_jobs.sections import JobSpec

_MIN_DISK_BYTES = 2 * GIB
_MIN_MEMORY_BYTES = 4 * GIB


@dataclass(frozen=True)
class Examination:
    """All checks."""

    checklist: Checklist

    @property
    def exit_code(self) -> int:
        return PreflightError.exit_code if self.checklist.failed else 0

    def to_json(self) -> str:
        return json.dumps(self.checklist.to_dict()["checks"], indent=2)

    def print(self, console: Console) -> None:
        print_checks(self.checklist, console)


def examine(storage_uri: str, spec: JobSpec | None = None) -> Examination:
    """Check the machine, and what a job description needs of it."""
    spin_briefly()
    checklist = Checklist()
    for check in (
        checks.check_python(),
        checks.check_packages(),
        checks.check_torch(),
        checks.check_memory(_MIN_MEMORY_BYTES),
        checks.check_disk(storage_uri, _MIN_DISK_BYTES),
        checks.check_storage(storage_uri),
        checks.check_tracking(),
    ):
        checklist.add(check)
    if spec is not None:
        add_workload(checklist, spec)
    return Examination(checklist)


def examine_target(spec: JobSpec) -> Examination:
    """Check the target of a job description; nothing is created there.

    Raises:
        SpecError: the description lacks what the target needs to be asked at all.
    """
    from ray_jobs.targets import connect

    return Examination(connect(spec.target, spec).check(spec))


def add_workload(checklist: Checklist, spec: JobSpec) -> None:
    """What a workload needs beside: its data, and for a network all that preflight checks."""
    from pipelines import network_plan, plan
    from ray_jobs.preflight import add_training_checks
    from ray_jobs.storage import Storage
    from ray_jobs.workloads.fire import FireSpec
    from ray_jobs.workloads.network import NetworkSpec

    if isinstance(spec, FireSpec):

        def plan_rows() -> str:
            return plan.describe(plan.plan_ensemble(spec).num_rows)

        checklist.make("data", plan_rows, needs=["storage"])
        return
    assert isinstance(spec, NetworkSpec), spec.workload
    prepared: list[DataSummary] = []

    def look() -> str:
        prepared.append(network_plan.prepare(spec, Storage(spec.storage)))
        return network_plan.describe(spec, prepared[0])

    checklist.make("data", look, needs=["storage"])
    for data in prepared:
        add_training_checks(checklist, spec, data, Storage(spec.storage))
