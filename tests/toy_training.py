"""A small network and its data, for tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.models.base import FitContext
from ray_jobs.result import Objective
from ray_jobs.storage import Storage
from ray_jobs.training import loop
from ray_jobs.training.batch import Batch
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.spec import CheckpointSpec, GuardSpec

NUM_SAMPLES, NUM_FEATURES, BATCH_SIZE = 60, 6, 10
OBJECTIVE = Objective(metric="val_loss", mode="min")


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [N, F] and y [N]: a line with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=generator)
    return x, x @ torch.arange(1.0, NUM_FEATURES + 1) + torch.randn(
        NUM_SAMPLES, generator=generator
    )


def network(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
    )


class ToyBatches:
    """Shuffled batches; `change` may spoil one."""

    def __init__(self, change: Callable[[int, int, Batch], Batch] = lambda e, k, batch: batch):
        self._x, self._y = data()
        self._change = change

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        replicas = Replicas()
        order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for number in range(start, NUM_SAMPLES // BATCH_SIZE):
            rows = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            rows = rows.chunk(replicas.world_size)[replicas.rank]
            batch = Batch({"x": self._x[rows], "y": self._y[rows]}, rows.tolist())
            yield self._change(epoch, number, batch)


def mean_squared_error(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    error = model(batch.tensors["x"]).squeeze(-1) - batch.tensors["y"]
    return error.square().mean(), [error.abs().mean()]


def validate(model: nn.Module) -> dict[str, float]:
    x, y = data(1)
    return {"val_loss": float((model(x).squeeze(-1) - y).square().mean())}


def learning(model: nn.Module, **changes: Any) -> loop.Learning:
    return loop.Learning(
        **{
            "loss": mean_squared_error,
            "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
            "epochs": 4,
            "patience": 10,
            "batch_size": BATCH_SIZE // Replicas().world_size,
            "metrics": ("mae",),
            "guards": GuardSpec(),
            "checkpoint": CheckpointSpec(every_steps=1),
            **changes,
        }
    )


def context(folder: Path | None = None, **changes: Any) -> tuple[FitContext, list[dict[str, Any]]]:
    """A context that journals to the list returned with it."""
    events: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    store = None
    if folder is not None:
        store = CheckpointStore(Storage(folder), "checkpoints", emit)
    return FitContext(3, OBJECTIVE, emit=emit, checkpoints=store, **changes), events
