"""gcode: which G-code line is a machine executing, told from its sensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from ray_jobs.checks import counted
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.models.gcode_spec import GcodeLossSpec, GcodeModelSpec, ValueTolerance
from ray_jobs.result import DataSummary, JobResult, MemberResult, SplitMetrics
from ray_jobs.storage import Storage
from ray_jobs.training.spec import TrainSpec
from ray_jobs.workloads.base import ModelForm, Request, draw
from ray_jobs.workloads.network import MODEL, TEST, VAL, NetworkSpec, NetworkWorkload

if TYPE_CHECKING:
    import torch

    from ray_jobs.data.machine_logs.windows import Windows
    from ray_jobs.gcode_metrics import GcodeLines
    from ray_jobs.run import Run
    from ray_jobs.training.gcode_decoding import GcodeDecoding

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


class GcodeSpec(NetworkSpec):
    """The job description of a decoder of G-code."""

    UNIT = "windows"
    SWEPT = ("model", "loss", "train")
    TRAINED_BY = ("model", "loss", "train", "objective", "seed", "value_tolerance")
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

    @model_validator(mode="after")
    def _train_fits(self) -> GcodeSpec:
        for key, advice in _FOREIGN.items():
            if getattr(self.train, key) != TrainSpec.model_fields[key].default:
                raise ValueError(
                    f"train.{key} says nothing to the network of workload gcode; {advice}"
                )
        return self

    def summary(self) -> dict[str, str]:
        model, weights = self.model, self.loss.head_weights
        weighed = (
            weights
            if isinstance(weights, str)
            else f"{weights.command:g} : {weights.param_type:g} : {weights.param_value:g}"
        )
        tolerances = self.value_tolerance.model_dump().items()
        layers = counted(model.num_layers, "layer")
        return {
            "model": f"{model.encoder}, {layers} of {model.hidden_dim}, {model.num_heads} heads of "
            f"attention, values by {model.value_head}",
            "loss": f"{self.loss.command}; weights of command : param_type : param_value {weighed}",
            "tolerance": ", ".join(f"{name} {value}" for name, value in tolerances),
            **super().summary(),
        }

    def hyperparameters(self, member: str) -> dict[str, Any]:
        foreign = {f"train.{key}" for key in _FOREIGN}
        tolerances = self.value_tolerance.model_dump(mode="json")
        return {
            **{k: v for k, v in super().hyperparameters(member).items() if k not in foreign},
            **{f"value_tolerance.{name}": value for name, value in tolerances.items()},
        }


class Gcode(NetworkWorkload):
    """Read the logs, check everything once, train, test once beside a baseline, register."""

    spec = GcodeSpec
    preparation = "ray_jobs.data.machine_logs.prepare:prepare_machine_logs"

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
        """The model's metrics of val and test, with the margin of its composite_acc over the
        baseline's; and as rivals those of the baseline, gradient boosting, and of one constant
        answer."""
        from ray_jobs.gcode_metrics import bootstrap_intervals, bootstrap_margin, command_scores
        from ray_jobs.gcode_predictions import GcodePredictions

        predictions = {
            "val": GcodePredictions.read(run.storage, run.path(VAL)),
            "test": self.predict_test(run, GcodePredictions.read),
        }
        decoded = _decode_rivals(run)
        tolerance, seed = run.spec.value_tolerance.parsed(), run.spec.seed
        metrics: SplitMetrics = {}
        rivals: dict[str, SplitMetrics] = {name: {} for name in decoded}
        for split, part in predictions.items():
            metrics[split] = bootstrap_intervals(
                part.true, part.predicted, tolerance, groups=part.group, seed=seed
            )
            for name, lines in decoded.items():
                rivals[name][split] = bootstrap_intervals(
                    part.true, lines[split], tolerance, groups=part.group, seed=seed
                )
            margin = bootstrap_margin(
                part.true,
                part.predicted,
                decoded["baseline"][split],
                tolerance,
                groups=part.group,
                seed=seed,
            )
            if margin is not None:
                metrics[split]["composite_acc_margin"] = margin
        return {
            "metrics": metrics,
            "rivals": rivals,
            "classes": {
                split: command_scores(part.true, part.predicted, part.commands)
                for split, part in predictions.items()
            },
            "members": [member.model_copy(update={"metrics": metrics}) for member in members],
        }

    def render(self, run: Run, result: JobResult) -> str:
        from ray_jobs.gcode_predictions import GcodePredictions
        from ray_jobs.members import read_history
        from ray_jobs.reporting.gcode_report import render_gcode_report

        path = run.path(TEST)
        is_tested = run.storage.exists(path)
        return render_gcode_report(
            result,
            run.spec,
            test=GcodePredictions.read(run.storage, path) if is_tested else None,
            history=read_history(run, MODEL),
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

    def requests(self, run: Run, data: DataSummary, split: str, num: int) -> Iterator[Request]:
        """Each is one window."""
        from ray_jobs.data.machine_logs.windows import load_windows

        windows = load_windows(run.storage, data, split)
        for number in draw(len(windows), num, run.spec.seed).tolist():
            table = {"columns": windows.features, "data": _measured(windows, number)}
            body = json.dumps({"dataframe_split": table}).encode()
            yield Request("application/json", body, int(windows.run[number]))


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


def _example_rows(run: Run, data: DataSummary) -> Any:
    """The rows of a window of val, in the features' own units."""
    import pandas as pd

    from ray_jobs.data.machine_logs.windows import load_windows

    windows = load_windows(run.storage, data, "val")
    return pd.DataFrame(_measured(windows, 0), columns=list(windows.features), dtype=float)


def _measured(windows: Windows, number: int) -> list[list[float | None]]:
    """The rows of a window in the features' own units; None where not measured."""
    import numpy as np

    frame = windows.frame
    (x,), (mask,) = windows.batch(np.array([number]))
    rows = (x * np.array(frame.std) + np.array(frame.mean)).astype(object)
    rows[~mask] = None
    return rows.tolist()


WORKLOAD = Gcode()
