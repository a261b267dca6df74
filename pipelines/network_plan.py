"""The plan of a job that trains one network: its data prepared, every preflight check made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.check_table import print_checks
from ray_jobs.checks import Checklist, Estimate, counted, duration, in_gib
from ray_jobs.errors import PreflightError
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage, writable
from ray_jobs.sweeping.rungs import rungs_of
from ray_jobs.workloads import find

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.sweeping.spec import SweepSpec
    from ray_jobs.workloads.network import NetworkSpec

_SHOWN_COLUMNS = 6


@dataclass(frozen=True)
class NetworkPlan:
    """What a run would do."""

    spec: NetworkSpec
    data: DataSummary
    checklist: Checklist

    @property
    def exit_code(self) -> int:
        return PreflightError.exit_code if self.checklist.failed else 0

    def to_json(self) -> str:
        data, estimate, sweep = self.data, self.checklist.estimate, self.checklist.sweep
        seconds = estimate.total_s if estimate else None
        return json.dumps(
            {
                "spec": self.spec.model_dump(mode="json"),
                "source": data.source,
                "num_rows": {split: part.num_rows for split, part in data.splits.items()},
                "classes": {"present": _present(data), "all": data.classes},
                "left_out": data.scan.left_out if data.scan else {},
                "left_out_columns": _left_out_columns(data),
                **self.checklist.to_dict(),
                "seconds": sweep.seconds[0] if sweep else seconds,
                "warnings": data.warnings,
            },
            indent=2,
        )

    def print(self, console: Console) -> None:
        spec, data, failed = self.spec, self.data, self.checklist.failed
        outcome = "everything checked"
        if failed:
            outcome = f"[red]{counted(len(failed), 'check')} failed[/]"
        console.print(f"[bold]{spec.workload}[/]: {outcome}, nothing trained")
        rows = [
            ("data", describe(spec, data)),
            ("left out", _left_out(data)),
            *spec.summary().items(),
            ("objective", f"{spec.objective.metric} ({spec.objective.mode}), seed {spec.seed}"),
            *(_sweep(spec.sweep).items() if spec.sweep else ()),
            ("storage", Storage(spec.storage).uri),
        ]
        for name, text in rows:
            console.print(f"{name:<10} {text}", soft_wrap=True, markup=False)
        console.print()
        print_checks(self.checklist, console)
        console.print()
        for warning in data.warnings:
            console.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        if self.checklist.estimate:
            console.print(
                f"{self._times(self.checklist.estimate)}. Estimated from a few steps: it may be "
                "twice as much or half",
                soft_wrap=True,
            )

    def _times(self, estimate: Estimate) -> str:
        """What training takes."""
        spec, sweep = self.spec, self.checklist.sweep
        early = f"or fewer (train.patience={spec.train.patience})"
        memory = f"{in_gib(estimate.memory_bytes)} of memory"
        if spec.sweep is None:
            return (
                f"about {duration(estimate.total_s)} of training for {spec.train.epochs} epochs of "
                f"{duration(estimate.epoch_s)}, {early}; {memory} a worker"
            )
        if sweep is None:  # no trial fits
            return f"about {duration(estimate.epoch_s)} an epoch of a trial; {memory} a trial"
        (least, most), (least_s, most_s) = sweep.num_epochs, sweep.seconds
        bounds = f"{least:,} to {most:,} epochs" if least < most else f"{least:,} epochs"
        return (
            f"about {duration(least_s)} of training for all trials, {sweep.num_side_by_side} side "
            f"by side, or up to {duration(most_s)}: {bounds} of {duration(estimate.epoch_s)}, "
            f"{early}, where each trial in full would take {sweep.num_full_epochs:,}; {memory} a "
            "trial"
        )


def make(spec: NetworkSpec, scratch: Storage | None = None) -> NetworkPlan:
    """Prepare the data that a run of `spec` needs, and make every check. Only the dataset stays.

    Args:
        scratch: the dataset is made there; the storage itself is not touched.

    Raises:
        PreflightError: the data or the storage cannot be used.
        RetryableError: the network failed, or a process was killed.
    """
    from rich.console import Console

    from ray_jobs.preflight import examine

    storage = scratch or writable(spec.storage)
    data = prepare(spec, storage)
    with Console(stderr=True).status("checking everything once"):
        return NetworkPlan(spec, data, examine(spec, data, storage))


def prepare(spec: NetworkSpec, storage: Storage) -> DataSummary:
    """The prepared dataset of `spec`, made if need be, with its progress on a terminal.

    Raises:
        DataError: the data cannot be used.
    """
    from rich.console import Console

    with Console(stderr=True).status("preparing data") as status:

        def emit(event: str, **fields: Any) -> None:
            if event == "progress":
                share = f"{fields['done']:,} of {fields['total']:,} {fields['unit']}"
                status.update(f"preparing data: {share}")

        return find(spec.workload).prepare(
            spec,
            storage=storage,
            num_workers=available_cpus(spec.resources),
            emit=emit,
        )


def describe(spec: NetworkSpec, data: DataSummary) -> str:
    """Source, splits and classes."""
    kind, _, where = data.source.partition(":")
    rows = ", ".join(f"{part.num_rows:,} {split}" for split, part in data.splits.items())
    num_present, num_classes = len(_present(data)), len(data.classes)
    present = f"{num_present} of " if num_present < num_classes else ""
    plural = "es" if data.label.endswith("s") else "s"
    return f"{kind} ({where}): {rows} {spec.UNIT}; {present}{num_classes} {data.label}{plural}"


def _present(data: DataSummary) -> list[str]:
    present = {name for part in data.splits.values() for name in part.class_counts}
    return [name for name in data.classes if name in present]


def _left_out(data: DataSummary) -> str:
    said = []
    if data.scan and data.scan.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.scan.left_out.items())
        left_out = sum(data.scan.left_out.values())
        said.append(f"{left_out:,} of {data.scan.num_files:,} files: {reasons}")
    if data.num_dropped:
        said.append(counted(data.num_dropped, "row"))
    columns = _left_out_columns(data)
    if columns:
        more = ", ..." if len(columns) > _SHOWN_COLUMNS else ""
        names = ", ".join(columns[:_SHOWN_COLUMNS])
        said.append(f"{counted(len(columns), 'column')} ({names}{more})")
    return "; ".join(said) or "nothing"


def _left_out_columns(data: DataSummary) -> list[str]:
    """Those that nothing is learned from: no sensors, or they give the answer away."""
    refused = {leak.column for leak in data.leakage.columns if leak.refused}
    return sorted(refused | data.leakage.excluded_columns.keys())


def _sweep(sweep: SweepSpec) -> dict[str, str]:
    """How trials are proposed, and which go on."""
    rungs = rungs_of(sweep)
    said = {
        "sweep": f"{counted(sweep.num_trials, 'trial')} by {sweep.search} search over "
        f"{', '.join(sweep.space)}",
        "rungs": f"all to epoch {rungs[-1]}",
    }
    if len(rungs) > 1:
        said["rungs"] = (
            f"{sweep.scheduler}: all to epoch {rungs[0]}, the best of each "
            f"{sweep.reduction_factor} on to {' and '.join(map(str, rungs[1:]))}"
        )
    said["winner"] = f"trained to epoch {sweep.max_epochs}, then tested once"
    return said
