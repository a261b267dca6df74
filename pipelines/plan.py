"""`emberline run --dry-run`: everything checked, nothing trained, and what a real run would do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ray_jobs.checks import duration
from ray_jobs.ray_runtime import SIDE_BY_SIDE, available_cpus
from ray_jobs.storage import Storage, writable
from ray_jobs.workloads.fire import FireSpec

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.network_plan import NetworkPlan
    from ray_jobs.sections import JobSpec

# Rows a second that the simulator makes on one core, and what a run costs beside its fits; see
# tests/bench.
_SIMULATED_ROWS_PER_SECOND = 7_000
_OVERHEAD_S = 25


@dataclass(frozen=True)
class PlannedMember:
    name: str
    family: str
    hyperparameters: dict[str, Any]
    seconds: float  # an estimate


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    spec: FireSpec
    storage: str
    num_rows: dict[str, int]
    members: list[PlannedMember]
    num_cpus: int
    side_by_side: int
    seconds: float  # an estimate of the whole
    warnings: list[str]
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        fields = asdict(self) | {"spec": self.spec.model_dump(mode="json")}
        return json.dumps(fields, indent=2)

    def print(self, console: Console) -> None:
        from rich.table import Table

        spec = self.spec
        source = spec.data.path or f"simulator ({spec.data.generator})"
        console.print(f"[bold]{spec.workload}[/]: everything checked, nothing trained")
        console.print(f"data       {source}: {describe(self.num_rows)}", soft_wrap=True)
        console.print(
            f"objective  {spec.objective.metric} ({spec.objective.mode}), seed {spec.seed}"
        )
        console.print(
            f"ensemble   {spec.ensemble.strategy}, at least {spec.ensemble.min_members} members"
        )
        console.print(f"storage    {self.storage}", soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("member", "about", "hyperparameters"):
            table.add_column(column, justify="right" if column == "about" else "left")
        for member in self.members:
            pairs = ", ".join(f"{key} {value}" for key, value in member.hyperparameters.items())
            table.add_row(member.name, f"{member.seconds:.0f} s", pairs)
        console.print(table)
        for warning in self.warnings:
            console.print(f"[yellow]warning:[/] {warning}")
        console.print(
            f"about {duration(self.seconds)}, {self.side_by_side} members side by side on "
            f"{self.num_cpus} CPUs (estimated; your machine may be twice as fast or slow)"
        )


def make(spec: JobSpec, scratch: Storage | None = None) -> Plan | NetworkPlan:
    """Check what a run of `spec` needs, and plan it.

    Args:
        scratch: what the check of the data writes goes there; the storage itself is not touched.

    Raises:
        PreflightError: the data or the storage cannot be used.
    """
    if isinstance(spec, FireSpec):
        return plan_ensemble(spec, scratch)
    from pipelines import network_plan
    from ray_jobs.workloads.network import NetworkSpec

    assert isinstance(spec, NetworkSpec), spec.workload
    return network_plan.make(spec, scratch)


def plan_ensemble(spec: FireSpec, scratch: Storage | None = None) -> Plan:
    """Check and plan an ensemble. A table is read and prepared, so that its faults show now.

    Args:
        scratch: as in `make`.

    Raises:
        PreflightError: the data or the storage cannot be used.
    """
    from ray_jobs.data.prepare import prepare

    storage = scratch or writable(spec.storage)
    warnings: list[str] = []
    data_seconds = 0.0
    if spec.data.source == "simulator":
        assert spec.data.samples is not None, "the spec fills it in"
        shares = spec.data.split.model_dump()
        num_rows = {split: round(spec.data.samples * share) for split, share in shares.items()}
        data_seconds = spec.data.samples / _SIMULATED_ROWS_PER_SECOND
    else:
        summary = prepare(
            spec.data, workload=spec.workload, seed=spec.seed, storage=storage, emit=_ignore
        )
        num_rows = {split: part.num_rows for split, part in summary.splits.items()}
        warnings = summary.warnings
    num_cpus = available_cpus(spec.resources)
    side_by_side = min(SIDE_BY_SIDE, num_cpus) if spec.parallel else 1
    members = [
        PlannedMember(
            name,
            config.family,
            config.model_dump(mode="json", exclude={"family"}),
            config.estimate_seconds(num_rows["train"], num_rows["val"]),
        )
        for name, config in spec.members.items()
    ]
    fits = [member.seconds for member in members]
    fit_seconds = max(sum(fits) / side_by_side, *fits)
    seconds = data_seconds / num_cpus + fit_seconds + _OVERHEAD_S
    where = spec.storage if scratch else f"{storage.uri} (writable)"
    return Plan(spec, where, num_rows, members, num_cpus, side_by_side, seconds, warnings)


def _ignore(event: str, **fields: Any) -> None:
    """A plan shows no progress."""


def describe(num_rows: dict[str, int]) -> str:
    """The sizes of the splits."""
    return ", ".join(f"{count:,} {split}" for split, count in num_rows.items()) + " rows"
