"""gcode: which G-code line is a machine executing, told from its sensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.models.gcode_spec import GcodeLossSpec, GcodeModelSpec, ValueTolerance
from ray_jobs.result import DataSummary, JobResult, MemberResult, MetricValue
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.space import check_space
from ray_jobs.sweeping.spec import SweepSpec
from ray_jobs.training.spec import TrainSpec
from ray_jobs.workloads.base import ModelForm
from ray_jobs.workloads.network import MODEL, VAL, NetworkWorkload

if TYPE_CHECKING:
    import torch

    from ray_jobs.gcode_metrics import GcodeLines
    from ray_jobs.run import Run
    from ray_jobs.training.gcode_decoding import GcodeDecoding

BASELINE = "artifacts/baseline.json"

# Keys of `train` that a decoder of windows has no use for, and where to look instead.
_FOREIGN = {
    "loss": "set loss.command",
    "focal_gamma": "set loss.focal_gamma",
    "imbalance": "set loss.class_weights",
    "label_smoothing": "leave it out",
    "layer_decay": "leave it out",
    "mixup": "leave it out",
    "cutmix": "leave it out",
    "channels_last": "leave it out",
    "augmentation": "leave it out",
    "num_loader_workers": "leave it out",
}
_SWEPT = ("model", "loss", "train")  # other sections would need other data, or another yardstick


class GcodeSpec(JobSpec):
    """The job description of a decoder of G-code."""

    METRICS: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "composite_acc": "max",
        "command_acc": "max",
        "param_type_acc": "max",
        "param_value_acc": "max",
    }

    data: MachineLogsSpec = MachineLogsSpec()
    model: GcodeModelSpec = GcodeModelSpec()
    loss: GcodeLossSpec = GcodeLossSpec()
    value_tolerance: ValueTolerance = ValueTolerance()
    train: TrainSpec
    sweep: SweepSpec | None = None

    @model_validator(mode="after")
    def _train_fits(self) -> GcodeSpec:
        for key, advice in _FOREIGN.items():
            if getattr(self.train, key) != TrainSpec.model_fields[key].default:
                raise ValueError(
                    f"train.{key} says nothing to the network of workload gcode; {advice}"
                )
        return self

    @model_validator(mode="after")
    def _sweep_fits(self) -> GcodeSpec:
        if self.sweep is None:
            return self
        metric = self.objective.metric
        if self.sweep.metric not in (None, metric):
            raise ValueError(
                f"sweep.metric is {self.sweep.metric}, but objective.metric is {metric}, which "
                "early stopping, checkpoints, the sweep and the gate all read; leave sweep.metric "
                "out"
            )
        check_space(self.sweep.space, {name: getattr(self, name) for name in _SWEPT})
        return self

    def families(self) -> dict[str, str]:
        return {MODEL: "gcode"}

    def hyperparameters(self, member: str) -> dict[str, Any]:
        return {
            f"{name}.{key}": value
            for name in ("model", "loss", "value_tolerance", "train")
            for key, value in getattr(self, name).model_dump(mode="json").items()
            if name != "train" or key not in _FOREIGN
        }


class Gcode(NetworkWorkload):
    """Read the logs, check everything once, train, test once beside a baseline, register."""

    spec = GcodeSpec

    def prepare(
        self, spec: GcodeSpec, *, storage: Storage, num_workers: int, emit: Callable[..., None]
    ) -> DataSummary:
        from ray_jobs.data.machine_logs.prepare import prepare_machine_logs

        return prepare_machine_logs(
            spec.data,
            workload=spec.workload,
            seed=spec.seed,
            storage=storage,
            num_workers=num_workers,
            emit=emit,
        )

    def task(
        self,
        spec: GcodeSpec,
        data: DataSummary,
        *,
        storage: Storage,
        device: torch.device,
        num_cpus: int,
    ) -> GcodeDecoding:
        from ray_jobs.training.gcode_decoding import GcodeDecoding

        return GcodeDecoding(spec, data, storage, device)

    def score(self, run: Run, members: list[MemberResult]) -> dict[str, Any]:
        """The model's metrics of val and test; beside them, as `baseline_...` and `constant_...`,
        those of gradient boosting and of one constant answer, and as `composite_acc_margin` what
        the model has over the boosting."""
        from ray_jobs.gcode_metrics import bootstrap_intervals, bootstrap_margin, command_scores
        from ray_jobs.gcode_predictions import GcodePredictions

        predictions = {
            "val": GcodePredictions.read(run.storage, run.path(VAL)),
            "test": self.predict_test(run, GcodePredictions.read),
        }
        rivals = _decode_rivals(run)
        tolerance, seed = run.spec.value_tolerance.parsed(), run.spec.seed
        metrics: dict[str, dict[str, MetricValue]] = {}
        beside: dict[str, dict[str, dict[str, MetricValue]]] = {name: {} for name in rivals}
        for split, part in predictions.items():

            def scored(lines: GcodeLines, part: GcodePredictions = part) -> dict[str, MetricValue]:
                return bootstrap_intervals(
                    part.true, lines, tolerance, groups=part.group, seed=seed
                )

            metrics[split] = scored(part.predicted)
            for name, said in rivals.items():
                beside[name][split] = scored(said[split])
            margin = bootstrap_margin(
                part.true,
                part.predicted,
                rivals["baseline"][split],
                tolerance,
                groups=part.group,
                seed=seed,
            )
            if margin is not None:
                beside["baseline"][split]["composite_acc_margin"] = margin
        run.storage.write_text(run.path(BASELINE), _to_json(beside))
        return {
            "metrics": {split: own | _prefixed(beside, split) for split, own in metrics.items()},
            "classes": {
                split: command_scores(part.true, part.predicted, part.commands)
                for split, part in predictions.items()
            },
            "members": [member.model_copy(update={"metrics": metrics}) for member in members],
        }

    def render(self, run: Run, result: JobResult) -> str:
        from ray_jobs.members import read_history
        from ray_jobs.reporting.class_report import render_class_report

        return render_class_report(
            result,
            predictions={},
            histories={MODEL: read_history(run, MODEL)},
            spec_yaml=run.spec.to_yaml(),
        )

    def write_model(self, run: Run, result: JobResult, folder: Path) -> ModelForm:
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        from ray_jobs.data.machine_logs.gcode import PARAMETERS

        assert result.data is not None, "only evaluated runs are logged"
        self.copy_model(run, result, folder)
        return ModelForm(
            code=Path(__file__).parents[1] / "tracking" / "gcode_model_code.py",
            signature=ModelSignature(
                inputs=Schema(
                    [ColSpec("double", name, required=False) for name in result.data.features]
                ),
                outputs=Schema(
                    [
                        ColSpec("long", "row"),
                        ColSpec("string", "command"),
                        *(ColSpec("double", name, required=False) for name in PARAMETERS),
                    ]
                ),
            ),
            example=_example_rows(run, result.data),
            requirements=("torch", "numpy", "pandas", "safetensors", "pyarrow", "pydantic"),
            tags={},
        )


def _decode_rivals(run: Run) -> dict[str, dict[str, GcodeLines]]:
    """What the baseline and a constant say of val and test."""
    from threadpoolctl import threadpool_limits

    from ray_jobs.data.machine_logs.windows import load_windows
    from ray_jobs.gcode_metrics import GcodeLines, constant_lines
    from ray_jobs.models.gcode_baseline import GcodeBaseline
    from ray_jobs.prepare import read_data
    from ray_jobs.ray_runtime import available_cpus

    data = read_data(run)
    windows = {name: load_windows(run.storage, data, name) for name in ("train", "val", "test")}
    train = windows.pop("train")
    true = GcodeLines(train.command, train.param_type, train.param_value)
    with threadpool_limits(available_cpus(run.spec.resources)):
        baseline = GcodeBaseline(train, seed=run.spec.seed)
        boosted = {split: baseline.decode(part) for split, part in windows.items()}
    return {
        "baseline": boosted,
        "constant": {split: constant_lines(true, len(part)) for split, part in windows.items()},
    }


def _prefixed(
    beside: Mapping[str, Mapping[str, Mapping[str, MetricValue]]], split: str
) -> dict[str, MetricValue]:
    from ray_jobs.gcode_metrics import HEAD_METRICS

    named = {
        f"{rival}_{name}": value
        for rival, splits in beside.items()
        for name, value in splits[split].items()
        if name in HEAD_METRICS
    }
    margin = beside["baseline"][split].get("composite_acc_margin")
    return named if margin is None else named | {"composite_acc_margin": margin}


def _to_json(beside: Mapping[str, Mapping[str, Mapping[str, MetricValue]]]) -> str:
    plain = {
        rival: {
            split: {name: value.model_dump(exclude_none=True) for name, value in metrics.items()}
            for split, metrics in splits.items()
        }
        for rival, splits in beside.items()
    }
    return json.dumps(plain, indent=2)


def _example_rows(run: Run, data: DataSummary) -> Any:
    """The rows of a window of val, in the features' own units."""
    import numpy as np
    import pandas as pd

    from ray_jobs.data.machine_logs.windows import load_windows

    windows = load_windows(run.storage, data, "val")
    frame = windows.frame
    (x,), (mask,) = windows.batch(np.array([0]))
    rows = np.where(mask, x * np.array(frame.std) + np.array(frame.mean), np.nan)
    return pd.DataFrame(rows, columns=list(frame.features))


WORKLOAD = Gcode()
