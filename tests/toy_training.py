"""A small network and its data, for tests of the training loop, alone or on two workers."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ray_jobs.models.base import FitContext, FitReport
from ray_jobs.result import Objective
from ray_jobs.storage import Storage
from ray_jobs.training import loop
from ray_jobs.training.batch import Batch
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.training.learning import Learning
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.spec import CheckpointSpec, GuardSpec

NUM_SAMPLES, NUM_FEATURES, BATCH_SIZE = 60, 6, 10
NUM_BATCHES = NUM_SAMPLES // BATCH_SIZE
OBJECTIVE = Objective(metric="val_loss", mode="min")

Change = Callable[[int, int, Batch], Batch]  # (epoch, number, batch) -> what is learnt from
Arrays = dict[str, NDArray[Any]]


class Killed(Exception):
    """Ends a fit as a lost process would: nothing is written on the way out."""


def data(seed: int = 0, num_samples: int = NUM_SAMPLES) -> tuple[Tensor, Tensor]:
    """x [N, F] and y [N]: a line with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, NUM_FEATURES, generator=generator)
    noise = torch.randn(num_samples, generator=generator)
    return x, x @ torch.arange(1.0, NUM_FEATURES + 1) + noise


def network(dropout: float = 0.1, *, batch_norm: bool = False, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, 16),
        nn.BatchNorm1d(16) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, 1),
    )


class ToyBatches:
    """Shuffled batches; `change` may spoil one."""

    def __init__(
        self,
        change: Change = lambda epoch, number, batch: batch,
        num_samples: int = NUM_SAMPLES,
    ):
        self._x, self._y = data(num_samples=num_samples)
        self._change = change

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        replicas = Replicas()
        order = torch.randperm(len(self._y), generator=torch.Generator().manual_seed(epoch))
        for number in range(start, len(order) // BATCH_SIZE):
            rows = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            rows = rows.chunk(replicas.world_size)[replicas.rank]
            batch = Batch({"x": self._x[rows], "y": self._y[rows]}, rows.tolist())
            yield self._change(epoch, number, batch)


def without(batch: Batch, ids: Iterable[int], reason: str = "unreadable") -> Batch:
    """The batch with some of its samples left out."""
    left_out = {row: reason for row in batch.ids if row in set(ids)}
    used = torch.tensor([row not in left_out for row in batch.ids], dtype=torch.bool)
    tensors = {name: part[used] for name, part in batch.tensors.items()}
    return Batch(tensors, [row for row in batch.ids if row not in left_out], left_out)


def poisoned(batch: Batch, value: float = float("nan")) -> Batch:
    """The batch with a value in its last sample that no network can learn from."""
    x = batch.tensors["x"].clone()
    x[-1, 0] = value
    return Batch({**batch.tensors, "x": x}, batch.ids)


def mean_squared_error(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    error = model(batch.tensors["x"]).squeeze(-1) - batch.tensors["y"]
    return error.square().mean(), [error.abs().mean()]


def validate(model: nn.Module) -> dict[str, float]:
    x, y = data(1)
    return {"val_loss": float((model(x).squeeze(-1) - y).square().mean())}


def learning(model: nn.Module, **changes: Any) -> Learning:
    return Learning(
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


def full_recipe(model: nn.Module, optimizer: str = "adamw", *, ema: bool = True) -> dict[str, Any]:
    """An optimizer, a schedule and averaged weights, as changes to `learning`."""
    if optimizer == "adamw":
        chosen: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    else:
        chosen = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
    scheduler, _ = create_scheduler_v2(
        chosen, num_epochs=4, warmup_epochs=1, warmup_lr=1e-4, warmup_prefix=True,
        step_on_epochs=False, updates_per_epoch=NUM_BATCHES,
    )  # fmt: skip
    return {
        "optimizer": chosen,
        "set_learning_rate": scheduler.step_update,
        "ema": ModelEmaV3(model, decay=0.9, use_warmup=True) if ema else None,
    }


def context(folder: Path | None = None, **changes: Any) -> tuple[FitContext, list[dict[str, Any]]]:
    """A context that journals to the list returned with it."""
    events: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    store = None
    if folder is not None:
        store = CheckpointStore(Storage(folder), "checkpoints", emit)
    values = {"seed": 3, "objective": OBJECTIVE, "checkpoints": store, **changes}
    return FitContext(emit=emit, **values), events


@dataclass
class Trained:
    """What a fit left behind; arrays, so that it can be sent between processes."""

    weights: Arrays
    report: FitReport
    events: list[dict[str, Any]]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Without what a clock says."""
        clocks = ("seconds", "samples_per_second")
        return [
            {key: value for key, value in epoch.items() if key not in clocks}
            for epoch in self.report.history
        ]


def train(
    folder: Path | None = None,
    *,
    change: Change = lambda epoch, number, batch: batch,
    model: nn.Module | None = None,
    validate: Callable[[nn.Module], dict[str, float]] = validate,
    context_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Trained:
    """Fit a toy network; `changes` are of its `Learning`."""
    model = network() if model is None else model
    surroundings, events = context(folder, **(context_changes or {}))
    report = loop.fit(model, ToyBatches(change), learning(model, **changes), validate, surroundings)
    return Trained(arrays(model), report, events)


def arrays(model: nn.Module) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def assert_same(first: Arrays, second: Arrays) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_close(first: Arrays, second: Arrays, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], 0, tolerance, err_msg=name)


def forking() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have torch imported already: in milliseconds, not seconds."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.toy_training"])
    return forkserver


def on_workers(
    function: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    num_workers: int = 2,
    timeout_s: float = 60,
    **options: Any,
) -> list[Any]:
    """What `function(*arguments, **options)` returns, or raises, on each worker of a process group.

    Raises:
        AssertionError: a worker is still busy, or waits for another, after `timeout_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{time.monotonic_ns()}"  # a file: no port to race for
    started = []
    for rank in range(num_workers):
        receiver, sender = forking().Pipe(duplex=False)
        process = forking().Process(
            target=_work, args=(sender, meeting, rank, num_workers, function, arguments, options)
        )
        process.start()
        sender.close()
        started.append((process, receiver))
    deadline = time.monotonic() + timeout_s
    try:
        outcomes = []
        for rank, (_, receiver) in enumerate(started):
            assert receiver.poll(max(0, deadline - time.monotonic())), f"worker {rank} waits"
            outcomes.append(receiver.recv())
        return outcomes
    finally:
        for process, _ in started:
            process.join(0 if time.monotonic() > deadline else 10)
            process.kill()
            process.join()


def _work(
    sender: Connection,
    meeting: Path,
    rank: int,
    num_workers: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_workers
    )
    try:
        outcome = function(*arguments, **options)
    except Exception as error:  # the test's to judge
        outcome = error
    sender.send(outcome)
    dist.destroy_process_group()
