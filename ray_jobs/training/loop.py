"""The training loop: epochs of guarded steps, a validation after each, checkpoints to go on from,
and the best weights at the end.

It knows nothing of pictures or sensors: it is given batches, a loss and a validation. All that is
random in a step comes from its place in the run, so that a resumed run repeats the very numbers of
one that was never cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.errors import JobFailed, Stopped
from ray_jobs.models.base import FitContext, FitReport
from ray_jobs.training.early_stopping import EarlyStopping
from ray_jobs.training.guards import OverfittingGuard
from ray_jobs.training.learning import BatchSource, Learning
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.step import Place, Stepper

MIN_CHECKPOINT_INTERVAL_S = 10.0  # between those at the ends of short epochs
STOP_POLL_INTERVAL_S = 1.0


def fit(
    network: nn.Module,
    batches: BatchSource,
    learning: Learning,
    validate: Callable[[nn.Module], dict[str, float]],
    context: FitContext,
) -> FitReport:
    """Train `network` in place and leave it with the weights of its best epoch.

    With `context.checkpoints` a run that was cut off goes on from its last checkpoint, and
    `context.on_epoch` hears of the epochs before it again. In a process group every worker calls
    this; the first one writes and reports.

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
        self._replicas = Replicas()
        self._stepper = Stepper(network, learning, self._replicas, context.seed, self._emit_any)
        self._epoch, self._batch = 1, 0
        self._sums = [0.0] * (1 + len(learning.metrics))  # of loss and metrics over samples
        self._num_used = 0  # samples of this epoch
        self._num_skipped_of_epoch = 0
        self._history: list[dict[str, Any]] = []
        self._best: tuple[int, dict[str, Tensor]] | None = None
        self._stopping = EarlyStopping(context.objective, learning.patience)
        self._overfitting = OverfittingGuard()
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
            place = Place(self._epoch, self._batch)
            wants_stop = self._replicas.rank == 0 and self._is_stop_requested()
            outcome = self._stepper.take(batch, place, wants_stop=wants_stop)
            if outcome.num_used:
                self._num_used += outcome.num_used
                pairs = zip(self._sums, outcome.sums, strict=True)
                self._sums = [total + value for total, value in pairs]
            else:
                self._num_skipped_of_epoch += 1
            self._batch += 1
            if outcome.wants_stop:
                self._save()
                raise Stopped(
                    f"stopped in epoch {self._epoch} after batch {self._batch}; a checkpoint is "
                    "written, and the same command with the same --run-id goes on from it"
                )
            if self._is_checkpoint_due():
                self._save()
        trained_s = time.monotonic() - started
        num_trained = self._num_used - num_before
        self._stepper.samples.check()
        self._end_epoch(started, num_trained / trained_s if trained_s else 0.0)
        if self._is_epoch_kept():
            self._save()
        self._context.on_epoch(self._history[-1])

    def _is_epoch_kept(self) -> bool:
        """Whether the epoch that has just ended gets a checkpoint."""
        is_over = self._epoch > self._learning.epochs or self._stopping.should_stop
        is_asked = self._history[-1]["epoch"] in self._context.kept_epochs
        elapsed_s = time.monotonic() - self._saved_at
        return is_over or is_asked or elapsed_s > MIN_CHECKPOINT_INTERVAL_S

    # The end of an epoch

    def _end_epoch(self, started: float, samples_per_second: float) -> None:
        learning = self._learning
        evaluated = self._evaluated()
        # Each worker's BatchNorm has seen its own samples; a resumed run knows the first one's.
        self._replicas.broadcast(evaluated.buffers())
        evaluated.eval()
        with torch.inference_mode():
            metrics = self._validate(evaluated)
        if self._stopping.update(self._epoch, metrics):
            weights = evaluated.state_dict()
            self._best = (self._epoch, {k: v.detach().cpu().clone() for k, v in weights.items()})
        means = [total / max(self._num_used, 1) for total in self._sums]
        names = ("train_loss", *(f"train_{name}" for name in learning.metrics))
        trained = dict(zip(names, means, strict=True)) if self._num_used else {}
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
        self._sums = [0.0] * len(self._sums)
        self._num_used = self._num_skipped_of_epoch = 0

    def _evaluated(self) -> nn.Module:
        """The network whose weights count: the average of them, if there is one."""
        return self._network if self._learning.ema is None else self._learning.ema.module

    def _report(self) -> FitReport:
        samples, nonfinite = self._stepper.samples, self._stepper.nonfinite
        warning = samples.warning()
        return FitReport(
            history=self._history,
            best_epoch=self._stopping.best_epoch,
            num_epochs=len(self._history),
            num_parameters=sum(p.numel() for p in self._network.parameters()),
            degenerate=self._stopping.is_degenerate,
            num_skipped_batches=nonfinite.num_skipped + samples.num_empty_batches,
            num_failed_samples=samples.num_failed,
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
        state = {
            "epoch": self._epoch,
            "batch": self._batch,
            "stepper": self._stepper.state(),
            "stopping": self._stopping.state(),
            "overfitting": self._overfitting.state(),
            "history": self._history,
            "sums": self._sums,
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
            self._replicas.broadcast(self._network.state_dict().values())
            return
        state = checkpoint.state
        self._network.load_state_dict(checkpoint.weights)
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._stepper.restore(state["stepper"])
        self._stopping.restore(state["stopping"])
        self._overfitting.restore(state["overfitting"])
        self._history, self._warnings = state["history"], state["warnings"]
        self._sums, self._num_used = state["sums"], state["num_used"]
        self._num_skipped_of_epoch = state["num_skipped"]
        if checkpoint.best is not None and self._stopping.best_epoch is not None:
            self._best = (self._stopping.best_epoch, checkpoint.best)
        self._emit("resumed", epoch=self._epoch, batch=self._batch, name=checkpoint.name)
        for entry in self._history:
            self._context.on_epoch(entry)

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
        """What a step has to say may be one worker's alone."""
        if event == "warning":
            self._warnings.append(fields["message"])
        self._context.emit(event, **fields)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._emit("warning", message=message)
