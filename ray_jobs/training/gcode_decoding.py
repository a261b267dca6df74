"""The task of reading the G-code in force off a window of sensor rows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.windows import Frame, Windows, load_frame, load_windows
from ray_jobs.errors import PreflightError
from ray_jobs.gcode_metrics import (
    HEAD_METRICS,
    GcodeLines,
    constant_lines,
    gcode_metrics,
    wide_tolerances,
)
from ray_jobs.gcode_predictions import GcodePredictions
from ray_jobs.models.gcode_bundle import write_gcode_bundle
from ray_jobs.models.gcode_network import GcodeNetwork, Heads, ValueDigits
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage
from ray_jobs.training.batch import Batch
from ray_jobs.training.gcode_batches import WindowBatches, lines_of, make_batch
from ray_jobs.training.gcode_loss import GcodeLoss
from ray_jobs.training.learning import BatchSource, Learning
from ray_jobs.training.recipe import make_recipe, prepare_model, scoring_autocast
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.task import NetworkTask

if TYPE_CHECKING:
    from ray_jobs.workloads.gcode import GcodeSpec

_SCORED_AT_ONCE = 256  # windows
_P = len(PARAMETERS)
_LESS_MEMORY = (
    "set train.precision=bf16, or take a smaller model.hidden_dim, model.num_layers or data.window"
)


class GcodeDecoding(NetworkTask):
    """Trains a network with a head each for command, set of parameters, and their values."""

    def __init__(self, spec: GcodeSpec, data: DataSummary, storage: Storage, device: torch.device):
        self._spec, self._data, self._storage = spec, data, storage
        self._frame: Frame = load_frame(storage, data)
        self._tolerance = spec.value_tolerance.parsed()
        self._replicas = Replicas()
        self._windows: dict[str, Windows] = {}
        self.device = device
        self.notes: list[str] = []

    def build(self, *, weights: bool) -> nn.Module:
        network = GcodeNetwork(
            self._spec.model,
            num_features=len(self._frame.features),
            num_commands=len(self._frame.commands),
            window=self._frame.window,
            learns_weights=self._spec.loss.head_weights == "learned",
        )
        if weights:
            network.param_value.fit(torch.from_numpy(self._split("train").param_value))
        return prepare_model(network, self._spec.train, self.device)

    def prepare(self, network: nn.Module) -> tuple[BatchSource, Learning]:
        train, windows, replicas = self._spec.train, self._split("train"), self._replicas
        batches = WindowBatches(
            windows,
            min(train.batch_size, len(windows)),
            self._spec.seed,
            replicas.rank,
            replicas.world_size,
        )
        recipe = make_recipe(
            network,
            train,
            num_classes=len(self._frame.commands),
            steps_per_epoch=batches.num_batches,
            device=self.device,
        )
        objective = self._loss
        allowed = self._tolerance

        def loss(network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
            assert isinstance(network, GcodeNetwork)
            x, mask = batch.tensors["x"], batch.tensors["mask"]
            heads, rows = network(x, mask, with_rows=True)
            total = objective(network, heads, batch)
            if weight := self._spec.loss.rows:
                total = total + weight * objective.of_rows(network, rows, batch)
            return total, self._train_metrics(network, heads, batch)

        constant = gcode_metrics(
            lines_of(self._val), constant_lines(lines_of(windows), len(self._val)), allowed
        )
        self.notes += wide_tolerances(constant, "val")
        learning = recipe.learning(
            train,
            loss,
            batch_size=-(-batches.batch_size // replicas.world_size),
            metrics=HEAD_METRICS[1:],
            less_memory=_LESS_MEMORY,
        )
        return batches, learning

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Metrics of val; the loss is that of the windows whose command train has."""
        said, val_loss = self._said(network, self._val, with_loss=True)
        metrics = gcode_metrics(lines_of(self._val), said, self._tolerance)
        return {"val_loss": val_loss, **{name: metrics[name] for name in HEAD_METRICS}}

    def predict(self, network: nn.Module, split: str) -> GcodePredictions:
        """What the network says of every window of a split."""
        windows = self._split(split)
        said, _ = self._said(network, windows, with_loss=False)
        names = np.array(windows.operations, object)
        return GcodePredictions(
            windows.row_id,
            windows.run,
            names[windows.operation],
            lines_of(windows),
            said,
            self._frame.commands,
        )

    def write(self, network: nn.Module, folder: Path) -> None:
        write_gcode_bundle(folder, network, self._spec.model, self._frame)

    # Preflight

    def check_labels(self) -> str:
        num_commands = len(self._frame.commands)
        for name in SPLITS[:2]:  # test is read once, at the end
            windows = self._split(name)
            if not windows.param_type.any():
                raise PreflightError(
                    f"no line of {name} sets one of {' '.join(PARAMETERS)}, so there is no "
                    "composite_acc; give data.path more runs, or take another seed"
                )
        train = self._split("train")
        outside = int(((train.command < 0) | (train.command >= num_commands)).sum())
        if outside:
            raise PreflightError(
                f"{outside} of {len(train)} windows of train have a command that is not in "
                f"0..{num_commands - 1}; delete the dataset's folder and run again"
            )
        if num_commands < 2:
            raise PreflightError(
                f"train has the one command {self._frame.commands[0]}, so there is nothing to "
                "tell apart; give data.path runs with others"
            )
        unseen = int((self._val.command < 0).sum())
        more = f"; {unseen} windows of val have others, which count as wrong" if unseen else ""
        return f"{num_commands} commands: {' '.join(self._frame.commands)}{more}"

    def check_transforms(self) -> str:
        """The scaling of rows, and whether the value head can say the values of train."""
        wanted, got = self._spec.data.window, self._frame.window
        if wanted != got:
            raise PreflightError(
                f"data.window is {wanted}, but the dataset has windows of {got} rows; delete the "
                "dataset's folder and run again"
            )
        train, model = self._split("train"), self._spec.model
        if model.value_head == "digits":
            largest = ValueDigits(1, model.integer_digits, model.decimal_digits).largest
            for p, name in enumerate(PARAMETERS):
                size = float(np.nanmax(np.abs(train.param_value[:, p]), initial=0.0))
                if size > largest:
                    raise PreflightError(
                        f"{name} reaches {size:g} in train, but "
                        f"model.integer_digits={model.integer_digits} ends at {largest:g}; set "
                        f"model.integer_digits={len(str(int(size)))}, or "
                        "model.value_head=regression"
                    )
        return f"{len(self._frame.features)} features scaled by train, {got} rows a window"

    def check_batch(self, batch: Batch) -> str:
        x, mask = batch.tensors["x"], batch.tensors["mask"]
        wanted = (len(batch), self._frame.window, len(self._frame.features))
        for name, part, dtype in (("x", x, torch.float32), ("mask", mask, torch.bool)):
            if tuple(part.shape) != wanted or part.dtype != dtype:
                raise PreflightError(
                    f"{name} of the first batch is {part.dtype} of shape {list(part.shape)}, but "
                    f"the network takes {dtype} of {list(wanted)}; delete the dataset's folder and "
                    "run again"
                )
        if not torch.isfinite(x).all():
            raise PreflightError(
                "the first batch has values that are not finite; set data.nonfinite=mask"
            )
        return f"{list(x.shape)} float32, {float(mask.float().mean()):.0%} of the cells measured"

    def check_output(self, output: Any, batch: Batch) -> None:
        wanted = [(len(batch), len(self._frame.commands)), (len(batch), _P), (len(batch), _P)]
        heads = output[0] if type(output) is tuple else output  # those of the rows stand beside
        is_heads = isinstance(heads, Heads)
        got = [tuple(part.shape) for part in heads] if is_heads else []
        if not is_heads or [got[0], got[1], got[2][:2]] != wanted:
            raise PreflightError(
                f"the network gives {got} for {len(batch)} windows, not command, param_type and "
                f"param_value of {wanted}; look at model.encoder"
            )

    # Within

    @cached_property
    def _loss(self) -> GcodeLoss:
        train = self._split("train")
        return GcodeLoss(
            self._spec.loss,
            command_counts=np.bincount(train.command, minlength=len(self._frame.commands)).tolist(),
            values_per_window=self._values_per_window,
            device=self.device,
        )

    @cached_property
    def _values_per_window(self) -> float:
        return float(self._split("train").param_type.sum(axis=1).mean())

    def _train_metrics(self, network: GcodeNetwork, heads: Heads, batch: Batch) -> list[Tensor]:
        """Accuracy of each head. That of values is by train's mean number of them a window: exact
        over an epoch."""
        targets = batch.tensors
        is_set, values = targets["param_type"], targets["param_value"].double()
        with torch.no_grad():
            command = (heads.command.argmax(dim=1) == targets["command"]).float().mean()
            exact = ((heads.param_type > 0) == is_set).all(dim=1).float().mean()
            error = (network.param_value.decode(heads.param_value) - values).abs()
            is_near = is_set & (error <= self._allowed(values))
            near = is_near.sum(dim=1).float().mean() / self._values_per_window
        return [command, exact, near]

    def _allowed(self, values: Tensor) -> Tensor:
        absolute = values.new_tensor(self._tolerance.absolute)
        return absolute + values.new_tensor(self._tolerance.relative) * values.abs()

    def _said(
        self, network: nn.Module, windows: Windows, *, with_loss: bool
    ) -> tuple[GcodeLines, float]:
        """What the network says of windows, in their order, and its mean loss on those whose
        command train has (NaN if none is asked for)."""
        assert isinstance(network, GcodeNetwork)
        network.eval()
        replicas, loss_sum, num_seen = self._replicas, 0.0, 0.0
        mine = np.arange(len(windows))[replicas.rank :: replicas.world_size]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(mine), _SCORED_AT_ONCE):
                batch = make_batch(windows, mine[start : start + _SCORED_AT_ONCE]).to(self.device)
                with scoring_autocast(self._spec.train, self.device):
                    heads = network(batch.tensors["x"], batch.tensors["mask"])
                said = [
                    heads.command.argmax(dim=1, keepdim=True),
                    heads.param_type > 0,
                    network.param_value.decode(heads.param_value),
                ]
                parts.append(torch.cat([part.double() for part in said], dim=1).cpu())
                if with_loss:
                    total, num = self._loss_sum(network, heads, batch)
                    loss_sum, num_seen = loss_sum + total, num_seen + num
        rows = torch.cat(parts) if parts else torch.empty(0, 1 + 2 * _P, dtype=torch.float64)
        table = replicas.gather_rows(rows, len(windows)).numpy()
        loss_sum, num_seen = replicas.sum_numbers([loss_sum, num_seen], self.device)
        lines = GcodeLines(
            table[:, 0].astype(np.int64), table[:, 1 : 1 + _P] > 0, table[:, 1 + _P :].copy()
        )
        return lines, loss_sum / num_seen if num_seen else float("nan")

    def _loss_sum(self, network: GcodeNetwork, heads: Heads, batch: Batch) -> tuple[float, int]:
        seen = batch.tensors["command"] >= 0
        num = int(seen.sum())
        if not num:
            return 0.0, 0
        tensors = {name: part[seen] for name, part in batch.tensors.items()}
        ids = [row for row, is_seen in zip(batch.ids, seen.tolist(), strict=True) if is_seen]
        loss = self._loss(network, Heads(*(part[seen] for part in heads)), Batch(tensors, ids))
        return float(loss) * num, num

    @property
    def _val(self) -> Windows:
        return self._split("val")

    def _split(self, name: str) -> Windows:
        if name not in self._windows:
            self._windows[name] = load_windows(self._storage, self._data, name)
        return self._windows[name]
