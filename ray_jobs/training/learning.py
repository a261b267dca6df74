"""What a network learns by: batches, a loss and a recipe, as a task gives them to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ray_jobs.training.batch import Batch
from ray_jobs.training.spec import CheckpointSpec, GuardSpec

# From network and batch: the mean loss over the batch, and the means of the metrics.
Loss = Callable[[nn.Module, Batch], tuple[Tensor, list[Tensor]]]


class BatchSource(Protocol):
    """Gives the batches of an epoch to one worker, in an order that only the seed decides."""

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch (from 1), from number `start` (from 0) on."""
        ...


class Ema(Protocol):
    """An average of the weights over the steps, such as timm's ModelEmaV3."""

    module: nn.Module

    def update(self, model: nn.Module, step: int | None = None) -> None: ...


@dataclass(frozen=True)
class Learning:
    """How a network learns: what a recipe gives the loop.

    Args:
        loss: its metrics are those of `metrics`, in that order.
        batch_size: samples of a whole batch on this worker.
        set_learning_rate: called with the number of updates done, before each one.
        less_memory: what a user can do where not even one sample fits into memory.
    """

    loss: Loss
    optimizer: torch.optim.Optimizer
    epochs: int
    patience: int
    batch_size: int
    micro_batch_size: int | None = None
    metrics: tuple[str, ...] = ()
    set_learning_rate: Callable[[int], None] = lambda num_updates: None
    clip_grad_norm: float | None = 1.0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    scaler: torch.amp.GradScaler | None = None
    ema: Ema | None = None
    guards: GuardSpec = field(default_factory=GuardSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    less_memory: str = "take a smaller network"
