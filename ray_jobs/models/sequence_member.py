"""A causal sequence network as an ensemble member: a row is scored from the last `window`
readings of its group."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from ray_jobs.data import windows
from ray_jobs.data.dataset import Rows
from ray_jobs.models.base import FitContext, FitReport, MemberConfig, validation_metrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ray_jobs.models.networks import SequenceNetwork
    from ray_jobs.training.batch import Batch

_Batch = tuple[NDArray[np.int64], NDArray[np.bool_]]
_WEIGHTS, _ABOUT = "weights.safetensors", "network.json"
_EVAL_READINGS = 65_536  # readings scored at once: bounds memory, whatever the number of rows


class SequenceConfig(MemberConfig):
    """What all sequence families share.

    A batch is `batch_size` full windows, or as many shorter ones as hold the same number of
    readings; the loss is taken at every reading of a window.
    """

    window: PositiveInt = 16  # readings, the scored one included
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    patience: PositiveInt = 8  # epochs without a better objective

    seconds_per_million_readings: ClassVar[float]  # forward and backward, on one core

    def estimate_seconds(self, num_train: int, num_val: int) -> float:
        scored = num_val * self.window / 3  # every row's whole window, forward only
        return self.epochs * (num_train + scored) * self.seconds_per_million_readings / 1e6


class SequenceMember:
    """Trains and applies a network that `make_network(num_features)` builds."""

    def __init__(self, config: SequenceConfig, make_network: Callable[[int], SequenceNetwork]):
        self._config = config
        self._make_network = make_network
        self._network: SequenceNetwork

    def fit(self, train: Rows, val: Rows, context: FitContext) -> FitReport:
        import torch

        from ray_jobs.training import loop
        from ray_jobs.training.learning import Learning

        torch.set_num_threads(context.num_threads)
        torch.manual_seed(context.seed)
        config = self._config
        network = self._make_network(train.x.shape[1])
        self._network = network
        network.standardize.fit(torch.from_numpy(train.x))
        peak = self._learning_rate(train)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=peak, weight_decay=config.weight_decay
        )
        total_steps = config.epochs * self._num_batches(len(train))

        def set_learning_rate(num_updates: int) -> None:
            share = _warmup_cosine(num_updates, config.warmup_steps, total_steps)
            optimizer.param_groups[0]["lr"] = peak * share

        def validate(network: nn.Module) -> dict[str, float]:
            return validation_metrics(val, self._predict(network, val), context.objective)

        return loop.fit(
            network,
            _WindowBatches(self, train, context.seed),
            Learning(
                loss=_reading_loss,
                optimizer=optimizer,
                epochs=config.epochs,
                patience=config.patience,
                batch_size=len(train),  # never more: a batch is bounded by its readings
                set_learning_rate=set_learning_rate,
                less_memory="take a smaller window or network for this member",
            ),
            validate,
            context,
        )

    def _learning_rate(self, train: Rows) -> float:
        """The configured rate, for the number of windows in a batch.

        Where histories are shorter than the window, a batch holds more windows than `batch_size`,
        and the rate grows with the square root of that (Malladi et al., NeurIPS 2022).
        """
        longest = int(train.history_length(self._config.window).max())
        return self._config.learning_rate * math.sqrt(self._config.window / longest)

    def _num_batches(self, num_rows: int) -> int:
        """About how many batches an epoch has."""
        return math.ceil(num_rows / (self._config.batch_size * self._config.window))

    def batches(self, train: Rows, rng: np.random.Generator) -> Iterator[_Batch]:
        """An epoch: the rows to gather [B, T], and at which of them the loss is taken [B, T].

        One window a row with the loss at its last reading would read every row `window` times; with
        the loss at every reading it is read once, for the same validation loss
        (tests/bench/fire_batching.py).
        """
        tiles = windows.tiling(train, self._config.window, rng)
        num_readings = self._config.batch_size * self._config.window
        return (batch.gather() for batch in windows.batches(tiles, num_readings, rng))

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        return self._predict(self._network, rows)

    def _predict(self, network: nn.Module, rows: Rows) -> NDArray[np.float64]:
        import torch

        from ray_jobs.training.guards import check_outputs

        x = torch.from_numpy(rows.x)
        scored = windows.ending_at_each_row(rows, self._config.window)
        size = max(1, _EVAL_READINGS // self._config.window)
        p = np.empty(len(rows), dtype=np.float64)
        network.eval()
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                part = scored.take(slice(start, start + size))
                index, _ = part.gather()
                last = torch.from_numpy(part.length - 1)
                logits = network(x[torch.from_numpy(index)])[torch.arange(len(part)), last]
                check_outputs(logits)
                p[start : start + size] = torch.sigmoid(logits.double()).numpy()
        return p

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self._network.state_dict(), folder / _WEIGHTS)
        about = {"num_features": len(self._network.standardize.mean)}
        (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        self._network = self._make_network(int(about["num_features"]))
        self._network.load_state_dict(load_file(folder / _WEIGHTS))
        self._network.eval()


class _WindowBatches:
    """The batches of an epoch: readings of windows [B, T, F], their labels [B, T], and where the
    loss is taken [B, T]."""

    def __init__(self, member: SequenceMember, train: Rows, seed: int):
        self._member, self._train, self._seed = member, train, seed

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        import torch

        from ray_jobs.training.batch import Batch

        train = self._train
        x, y = torch.from_numpy(train.x), torch.from_numpy(train.y.astype(np.float32))
        rng = np.random.default_rng((self._seed, epoch))
        for number, (rows, scored) in enumerate(self._member.batches(train, rng)):
            if number < start:
                continue
            index = torch.from_numpy(rows)
            tensors = {"x": x[index], "y": y[index], "scored": torch.from_numpy(scored)}
            yield Batch(tensors, train.row_id[rows[:, 0]].tolist())


def _reading_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    from torch.nn.functional import binary_cross_entropy_with_logits

    scored = batch.tensors["scored"]
    logits = network(batch.tensors["x"])[scored]
    return binary_cross_entropy_with_logits(logits, batch.tensors["y"][scored]), []


def _warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the learning rate at a step: linear up, then a half cosine down to a tenth
    (Loshchilov 2017)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.55 + 0.45 * math.cos(math.pi * progress)
