"""The training loop: epochs of optimizer steps with guards around them, a validation after each
epoch, checkpoints to go on from, and the best weights at the end.

It knows nothing of pictures or sensors: it is given batches, a loss and a validation. All that is
random in a step comes from (seed, epoch, batch, rank), so that a resumed run repeats the very
numbers of one that was never cut off.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ray_jobs.errors import JobFailed, Stopped
from ray_jobs.models.base import FitContext, FitReport
from ray_jobs.training.batch import Batch
from ray_jobs.training.early_stopping import EarlyStopping
from ray_jobs.training.guards import (
    BufferGuard,
    MemoryGuard,
    NonFiniteGuard,
    OverfittingGuard,
    SampleGuard,
    is_out_of_memory,
)
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.spec import CheckpointSpec, GuardSpec

MIN_CHECKPOINT_INTERVAL_S = 10.0  # between those at the ends of short epochs
STOP_POLL_INTERVAL_S = 1.0
# Of the verdict that workers exchange in a step; the metrics follow.
_NUM_USED, _NUM_FAILED, _NONFINITE, _STOP, _NUM_FIXED = range(5)


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
        loss: from network and batch, the mean loss over the batch, and the means of `metrics`.
        batch_size: samples of a whole batch on this worker.
        set_learning_rate: called with the number of updates done, before each one.
    """

    loss: Callable[[nn.Module, Batch], tuple[Tensor, list[Tensor]]]
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


def fit(
    network: nn.Module,
    batches: BatchSource,
    learning: Learning,
    validate: Callable[[nn.Module], dict[str, float]],
    context: FitContext,
) -> FitReport:
    """Train `network` in place and leave it with the weights of its best epoch.

    With `context.checkpoints` a run that was cut off goes on from its last checkpoint. In a process
    group every worker calls this; the first one writes and reports.

    Args:
        network: on its device.
        validate: the validation metrics of a network in eval mode; the objective is among them,
            and `val_loss` where there is one. Every worker must get the same.

    Raises:
        JobFailed: a guard says that going on is no use.
        RetryableError: the storage does not take a checkpoint.
        Stopped: `context.stop_requested`; a checkpoint is written.
    """
    loop = _Loop(network, batches, learning, validate, context)
    return loop.run()


class _Loop:
    def __init__(
        self,
        network: nn.Module,
        batches: BatchSource,
        learning: Learning,
        validate: Callable[[nn.Module], dict[str, float]],
        context: FitContext,
    ):
        self._network, self._batches, self._learning = network, batches, learning
        self._validate, self._context = validate, context
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._replicas = Replicas()
        self._epoch, self._batch, self._num_updates = 1, 0, 0
        self._sums = np.zeros(1 + len(learning.metrics))  # of loss and metrics over samples
        self._num_used = 0  # samples of this epoch
        self._num_skipped_of_epoch = 0
        self._history: list[dict[str, Any]] = []
        self._best: tuple[int, dict[str, Tensor]] | None = None
        self._stopping = EarlyStopping(context.objective, learning.patience)
        self._nonfinite = NonFiniteGuard(learning.guards)
        self._samples = SampleGuard(learning.guards)
        self._memory = MemoryGuard(learning.micro_batch_size or learning.batch_size)
        self._overfitting = OverfittingGuard()
        self._buffers = BufferGuard(network.buffers())
        self._warnings: list[str] = []
        self._saved_at = self._polled_at = time.monotonic()

    def run(self) -> FitReport:
        self._resume()
        while self._epoch <= self._learning.epochs and not self._stopping.should_stop:
            self._train_epoch()
        if self._best is None:
            metric = self._context.objective.metric
            raise JobFailed(f"{metric} was never finite; lower the learning_rate")
        self._network.load_state_dict(self._best[1])
        self._network.eval()
        return self._report()

    def _train_epoch(self) -> None:
        started = time.monotonic()
        num_before = self._num_used
        self._network.train()
        for batch in self._batches.epoch(self._epoch, self._batch):
            stop = self._step(batch)
            self._batch += 1
            if stop:
                self._save()
                raise Stopped(
                    f"stopped in epoch {self._epoch} after batch {self._batch}; a checkpoint is "
                    "written, and the same command with the same --run-id goes on from it"
                )
            if self._is_checkpoint_due():
                self._save()
        trained_s = time.monotonic() - started
        num_trained = self._num_used - num_before
        self._samples.check()
        self._end_epoch(started, num_trained / trained_s if trained_s else 0.0)
        if self._is_over or time.monotonic() - self._saved_at > MIN_CHECKPOINT_INTERVAL_S:
            self._save()

    @property
    def _is_over(self) -> bool:
        return self._epoch > self._learning.epochs or self._stopping.should_stop

    # One step

    def _step(self, batch: Batch) -> bool:
        """Learn from a batch, or leave it out; True if the run is asked to stop."""
        learning, replicas = self._learning, self._replicas
        if batch.failed:
            self._tell_failed(batch)
        learning.set_learning_rate(self._num_updates)
        means = self._backward(batch)
        wants_stop = replicas.rank == 0 and self._is_stop_requested()
        if replicas.is_alone:
            num_used, num_failed = len(batch), len(batch.failed)
            norm = self._clip() if num_used else torch.zeros((), device=self._device)
            *values, norm_value = torch.cat([means, norm[None].to(means.dtype)]).tolist()
            is_finite = all(map(math.isfinite, (values[0], norm_value)))
            is_cause, sums = not is_finite, np.array(values) * num_used
        else:
            fixed = [len(batch), len(batch.failed), 0.0, float(wants_stop)]
            verdict = torch.cat([means.new_tensor(fixed), means * len(batch)])
            # One NaN in the sum would hide what the other workers have to say.
            verdict[_NONFINITE] = (~torch.isfinite(means[0])).to(verdict.dtype)
            verdict = torch.nan_to_num(verdict)
            total, own_is_finite = replicas.sum_step(self._parameters, verdict, _NONFINITE)
            numbers = total.tolist()
            num_used, num_failed = round(numbers[_NUM_USED]), round(numbers[_NUM_FAILED])
            wants_stop, is_finite = numbers[_STOP] > 0, numbers[_NONFINITE] == 0
            sums = np.array(numbers[_NUM_FIXED:])
            if num_used:
                self._scale_gradients(learning.batch_size / num_used)
                is_finite = math.isfinite(self._clip().item()) and is_finite
            is_cause = not own_is_finite or not math.isfinite(means[0].item())
        self._samples.observe(num_used=num_used, num_failed=num_failed)
        if num_used == 0:
            self._num_skipped_of_epoch += 1
            return wants_stop
        self._update(is_finite=is_finite)
        if is_finite:
            self._sums += sums
            self._num_used += num_used
        else:
            self._num_skipped_of_epoch += 1
            self._buffers.restore()
            if is_cause:
                self._emit_any("skipped", reason="the loss or its gradient is not finite",
                               ids=batch.ids)  # fmt: skip
        if is_finite or not self._scale_was_too_high():
            self._nonfinite.observe(is_finite=is_finite)
        return wants_stop

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss, added up over micro-batches; the means of loss and metrics,
        shape [1 + M]."""
        num_metrics = 1 + len(self._learning.metrics)
        self._buffers.keep()
        while True:
            self._seed()
            self._learning.optimizer.zero_grad(set_to_none=True)
            means = torch.zeros(num_metrics, device=self._device)
            size = self._memory.size
            try:
                for part in batch.to(self._device).parts(size) if len(batch) else ():
                    self._backward_part(part, len(batch), means)
                return means
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, which holds the graph of the failed attempt.
            message = self._memory.halve(min(size, len(batch)))
            self._buffers.restore()
            self._warnings.append(message)
            self._emit_any("warning", message=message)  # it may be this worker's alone
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward_part(self, part: Batch, num_samples: int, means: Tensor) -> None:
        learning = self._learning
        with learning.autocast():
            loss, metrics = learning.loss(self._network, part)
        share = len(part) / num_samples
        # Workers with fewer samples weigh less; see _scale_gradients for the other half of this.
        weight = share if self._replicas.is_alone else len(part) / learning.batch_size
        weighted = loss if weight == 1 else loss * weight
        (learning.scaler.scale(weighted) if learning.scaler else weighted).backward()
        with torch.no_grad():
            means += torch.stack([loss.detach(), *metrics]).to(means.dtype) * share

    def _scale_gradients(self, factor: float) -> None:
        """After summing gradients that were divided by the size of one worker's whole batch."""
        if factor != 1:
            torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], factor)

    def _clip(self) -> Tensor:
        """The norm of all gradients, before they are clipped."""
        learning = self._learning
        if learning.scaler is not None:
            learning.scaler.unscale_(learning.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if learning.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, learning.clip_grad_norm, norm)
        return norm

    def _update(self, *, is_finite: bool) -> None:
        learning = self._learning
        if is_finite:
            if learning.scaler is not None:
                learning.scaler.step(learning.optimizer)
            else:
                learning.optimizer.step()
            self._num_updates += 1
            if learning.ema is not None:
                learning.ema.update(self._network, self._num_updates)
        if learning.scaler is not None:  # lowers the scale after a step that was not finite
            learning.scaler.update()

    def _scale_was_too_high(self) -> bool:
        """fp16 alone: the loss scale begins high and is lowered until gradients are finite."""
        scaler = self._learning.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _tell_failed(self, batch: Batch) -> None:
        reasons = sorted(set(batch.failed.values()))
        self._samples.reasons.update(batch.failed.values())
        self._emit_any("left_out", reasons=reasons, ids=list(batch.failed))

    def _seed(self) -> None:
        """Dropout and the like depend on the place in the run alone."""
        place = (self._context.seed, self._epoch, self._batch, self._replicas.rank)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little")
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)

    # The end of an epoch

    def _end_epoch(self, started: float, samples_per_second: float) -> None:
        learning = self._learning
        evaluated = self._evaluated()
        evaluated.eval()
        with torch.inference_mode():
            metrics = self._validate(evaluated)
        if self._stopping.update(self._epoch, metrics):
            weights = evaluated.state_dict()
            self._best = (self._epoch, {k: v.detach().cpu().clone() for k, v in weights.items()})
        means = self._sums / max(self._num_used, 1)
        names = ("train_loss", *(f"train_{name}" for name in learning.metrics))
        trained = dict(zip(names, means.tolist(), strict=True)) if self._num_used else {}
        rate = max(group["lr"] for group in learning.optimizer.param_groups)
        entry = {
            "epoch": self._epoch,
            **trained,
            **metrics,
            "learning_rate": rate,
            "seconds": round(time.monotonic() - started, 3),
            "samples_per_second": round(samples_per_second, 1),
            "num_skipped_batches": self._num_skipped_of_epoch,
        }
        self._history.append(entry)
        self._emit(
            "epoch",
            epoch=self._epoch,
            num_epochs=learning.epochs,
            metrics=metrics,
            train={name.removeprefix("train_"): value for name, value in trained.items()},
            best=self._stopping.best,
            patience=f"{self._stopping.num_bad_epochs}/{learning.patience}",
            learning_rate=rate,
            samples_per_second=entry["samples_per_second"],
            num_skipped_batches=self._num_skipped_of_epoch,
        )
        if trained:
            note = self._overfitting.observe(
                self._epoch, trained["train_loss"], metrics.get("val_loss")
            )
            if note:
                self._warn(note)
        self._epoch, self._batch = self._epoch + 1, 0
        self._sums[:], self._num_used, self._num_skipped_of_epoch = 0, 0, 0

    def _evaluated(self) -> nn.Module:
        """The network whose weights count: the average of them, if there is one."""
        return self._network if self._learning.ema is None else self._learning.ema.module

    def _report(self) -> FitReport:
        warning = self._samples.warning()
        return FitReport(
            history=self._history,
            best_epoch=self._stopping.best_epoch,
            num_epochs=len(self._history),
            num_parameters=sum(p.numel() for p in self._network.parameters()),
            degenerate=self._stopping.is_degenerate,
            num_skipped_batches=self._nonfinite.num_skipped + self._samples.num_empty_batches,
            num_failed_samples=self._samples.num_failed,
            warnings=[*self._warnings, *([warning] if warning else [])],
        )

    # Checkpoints

    def _is_checkpoint_due(self) -> bool:
        policy = self._learning.checkpoint
        if policy.every_steps and self._batch % policy.every_steps == 0:
            return True
        elapsed_s = time.monotonic() - self._saved_at
        return policy.every_minutes is not None and elapsed_s > policy.every_minutes * 60

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        store = self._context.checkpoints
        if store is None or self._replicas.rank != 0:
            return
        learning = self._learning
        state = {
            "epoch": self._epoch,
            "batch": self._batch,
            "num_updates": self._num_updates,
            "optimizer": learning.optimizer.state_dict(),
            "scaler": learning.scaler.state_dict() if learning.scaler else None,
            "ema": learning.ema.module.state_dict() if learning.ema else None,
            "stopping": self._stopping.state(),
            "guards": {
                "nonfinite": self._nonfinite.state(),
                "samples": self._samples.state(),
                "micro_batch_size": self._memory.size,
                "overfitting": self._overfitting.state(),
            },
            "history": self._history,
            "sums": self._sums.tolist(),
            "num_used": self._num_used,
            "num_skipped": self._num_skipped_of_epoch,
            "warnings": self._warnings,
        }
        store.save(self._epoch, self._batch, self._network.state_dict(), state, self._best)

    def _resume(self) -> None:
        """Go on from the newest checkpoint; every worker reads it."""
        store = self._context.checkpoints
        checkpoint = store.load() if store is not None else None
        if checkpoint is None:
            self._replicas.broadcast(self._network)
            return
        learning, state = self._learning, checkpoint.state
        self._network.load_state_dict(checkpoint.weights)
        learning.optimizer.load_state_dict(state["optimizer"])
        if learning.scaler is not None:
            learning.scaler.load_state_dict(state["scaler"])
        if learning.ema is not None:
            learning.ema.module.load_state_dict(state["ema"])
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._num_updates = state["num_updates"]
        self._stopping.restore(state["stopping"])
        guards = state["guards"]
        self._nonfinite.restore(guards["nonfinite"])
        self._samples.restore(guards["samples"])
        self._memory.size = min(self._memory.size, guards["micro_batch_size"])
        self._overfitting.restore(guards["overfitting"])
        self._history, self._warnings = state["history"], state["warnings"]
        self._sums, self._num_used = np.array(state["sums"]), state["num_used"]
        self._num_skipped_of_epoch = state["num_skipped"]
        if checkpoint.best is not None and self._stopping.best_epoch is not None:
            self._best = (self._stopping.best_epoch, checkpoint.best)
        self._emit("resumed", epoch=self._epoch, batch=self._batch, name=checkpoint.name)

    # Telling

    def _is_stop_requested(self) -> bool:
        if time.monotonic() - self._polled_at < STOP_POLL_INTERVAL_S:
            return False
        self._polled_at = time.monotonic()
        return self._context.stop_requested()

    def _emit(self, event: str, **fields: Any) -> None:
        """What is the same for all workers is said by the first."""
        if self._replicas.rank == 0:
            self._context.emit(event, **fields)

    def _emit_any(self, event: str, **fields: Any) -> None:
        rank = self._replicas.rank
        self._context.emit(event, epoch=self._epoch, batch=self._batch, rank=rank, **fields)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._emit("warning", message=message)
