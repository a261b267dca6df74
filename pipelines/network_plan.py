"""The plan of a job that trains one network: its data prepared, every preflight check made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.doctor import print_checks
from ray_jobs.checks import Checklist, counted, duration, in_gib
from ray_jobs.errors import PreflightError
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage
from ray_jobs.workloads import find

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class NetworkPlan:
    """What a run would do."""

    spec: Any
    data: DataSummary
    checklist: Checklist

    @property
    def exit_code(self) -> int:
        return PreflightError.exit_code if self.checklist.failed else 0

    def to_json(self) -> str:
        data, estimate = self.data, self.checklist.estimate
        return json.dumps(
            {
                "spec": self.spec.model_dump(mode="json"),
                "source": data.source,
                "num_rows": {split: part.num_rows for split, part in data.splits.items()},
                "classes": {"present": _present(data), "all": data.classes},
                "left_out": data.scan.left_out if data.scan else {},
                **self.checklist.to_dict(),
                "seconds": estimate.total_s if estimate else None,
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
            ("data", describe(data)),
            ("left out", _left_out(data)),
            ("model", _model(spec.model)),
            ("recipe", _recipe(spec.train)),
            ("objective", f"{spec.objective.metric} ({spec.objective.mode}), seed {spec.seed}"),
            ("storage", Storage(spec.storage).uri),
        ]
        for name, text in rows:
            console.print(f"{name:<10} {text}", soft_wrap=True, markup=False)
        console.print()
        print_checks(self.checklist, console)
        console.print()
        for warning in data.warnings:
            console.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        estimate = self.checklist.estimate
        if estimate:
            console.print(
                f"about {duration(estimate.total_s)} of training for {spec.train.epochs} epochs of "
                f"{duration(estimate.epoch_s)}, or fewer (train.patience={spec.train.patience}); "
                f"{in_gib(estimate.memory_bytes)} of memory a worker. Estimated from a few steps: "
                "it may be twice as much or half",
                soft_wrap=True,
            )


def make(spec: Any) -> NetworkPlan:
    """Prepare the data that a run of `spec` needs, and make every check. Only the dataset stays.

    Raises:
        PreflightError: the data or the storage cannot be used.
        RetryableError: the network failed, or a process was killed.
    """
    from rich.console import Console

    from ray_jobs.preflight import examine

    storage = Storage(spec.storage)
    storage.check_writable()
    data = prepare(spec)
    with Console(stderr=True).status("checking everything once"):
        return NetworkPlan(spec, data, examine(spec, data, storage))


def prepare(spec: Any) -> DataSummary:
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
            storage=Storage(spec.storage),
            num_workers=available_cpus(spec.resources),
            emit=emit,
        )


def describe(data: DataSummary) -> str:
    """Source, splits and classes."""
    kind, _, where = data.source.partition(":")
    rows = ", ".join(f"{part.num_rows:,} {split}" for split, part in data.splits.items())
    present = f"{len(_present(data))} of {len(data.classes)} classes"
    return f"{kind} ({where}): {rows}; {present}"


def _present(data: DataSummary) -> list[str]:
    present = {name for part in data.splits.values() for name in part.class_counts}
    return [name for name in data.classes if name in present]


def _left_out(data: DataSummary) -> str:
    if data.scan is None or not data.scan.left_out:
        return "nothing"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.scan.left_out.items())
    return f"{sum(data.scan.left_out.values()):,} of {data.scan.num_files:,} files: {reasons}"


def _model(model: Any) -> str:
    weights = "pretrained" if model.pretrained else "from scratch"
    return f"{model.name}, {weights}, {model.image_size} px"


def _recipe(train: Any) -> str:
    parts = [
        f"{train.optimizer} with learning_rate {train.learning_rate:g}, {train.schedule}",
        f"batches of {train.batch_size}",
        train.loss,
        f"at most {train.epochs} epochs",
    ]
    return ", ".join(parts)
