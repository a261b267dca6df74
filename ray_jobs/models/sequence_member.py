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
    from torch import Tensor

    from ray_jobs.models.networks import SequenceNetwork

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
        from torch.nn.functional import binary_cross_entropy_with_logits

        from ray_jobs.training import loop

        torch.set_num_threads(context.num_threads)
        torch.manual_seed(context.seed)
        config, rng = self._config, np.random.default_rng(context.seed)
        network = self._make_network(train.x.shape[1])
        self._network = network
        x, y = torch.from_numpy(train.x), torch.from_numpy(train.y.astype(np.float32))
        network.standardize.fit(x)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self._learning_rate(train), weight_decay=config.weight_decay
        )
        total_steps = config.epochs * self._num_batches(len(train))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _warmup_cosine(step, config.warmup_steps, total_steps)
        )

        def train_losses(_epoch: int) -> Iterator[Tensor]:
            for batch in self._batches(train, rng):
                index, scored = (torch.from_numpy(array) for array in batch)
                yield binary_cross_entropy_with_logits(network(x[index])[scored], y[index][scored])

        def validate() -> dict[str, float]:
            return validation_metrics(val, self.predict_proba(val), context.objective)

        return loop.fit(
            network,
            optimizer=optimizer,
            scheduler=scheduler,
            epochs=config.epochs,
            patience=config.patience,
            train_losses=train_losses,
            validate=validate,
            context=context,
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

    def _batches(self, train: Rows, rng: np.random.Generator) -> Iterator[_Batch]:
        """An epoch: the rows to gather [B, T], and at which of them the loss is taken [B, T].

        One window a row with the loss at its last reading would read every row `window` times; with
        the loss at every reading it is read once, for the same validation loss
        (tests/bench/fire_batching.py).
        """
        tiles = windows.tiling(train, self._config.window, rng)
        num_readings = self._config.batch_size * self._config.window
        return (batch.gather() for batch in windows.batches(tiles, num_readings, rng))

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        import torch

        x = torch.from_numpy(rows.x)
        scored = windows.ending_at_each_row(rows, self._config.window)
        size = max(1, _EVAL_READINGS // self._config.window)
        p = np.empty(len(rows), dtype=np.float64)
        self._network.eval()
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                part = scored.take(slice(start, start + size))
                index, _ = part.gather()
                last = torch.from_numpy(part.length - 1)
                logits = self._network(x[torch.from_numpy(index)])[torch.arange(len(part)), last]
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


def _warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the learning rate at a step: linear up, then a half cosine down to a tenth
    (Loshchilov 2017)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.55 + 0.45 * math.cos(math.pi * progress)
