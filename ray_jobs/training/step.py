"""One optimizer step: the gradients of a batch, the verdict of all workers on it, and the update or
its omission."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ray_jobs.training.batch import Batch
from ray_jobs.training.guards import (
    BufferGuard,
    MemoryGuard,
    NonFiniteGuard,
    SampleGuard,
    is_out_of_memory,
)
from ray_jobs.training.learning import Learning
from ray_jobs.training.replicas import Replicas

# Of the verdict that workers exchange in a step; the means of loss and metrics follow.
_NUM_USED, _NUM_FAILED, _NONFINITE, _STOP, _NUM_FIXED = range(5)


class Place(NamedTuple):
    """Where in training a step is: all that is random in it comes from here."""

    epoch: int  # from 1
    batch: int  # from 0


class Outcome(NamedTuple):
    """What came of a step, over all workers."""

    num_used: int  # samples learned from; 0 if the step was skipped
    sums: list[float]  # of the loss and each metric over those samples
    wants_stop: bool


class _Verdict(NamedTuple):
    num_used: int
    num_failed: int
    is_finite: bool
    is_cause: bool  # this worker's loss or gradient is not finite
    sums: list[float]
    wants_stop: bool


class Stepper:
    """Takes the steps of one worker, and keeps what they leave: optimizer state and guards.

    Args:
        seed: of the run.
        emit: the journal; receives `left_out`, `skipped` and `warning`.
    """

    def __init__(
        self,
        network: nn.Module,
        learning: Learning,
        replicas: Replicas,
        seed: int,
        emit: Callable[..., None],
    ):
        self._network, self._learning, self._replicas = network, learning, replicas
        self._seed, self._emit = seed, emit
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._num_updates = 0
        self.nonfinite = NonFiniteGuard(learning.guards)
        self.samples = SampleGuard(learning.guards)
        micro_batch_size = learning.micro_batch_size or learning.batch_size
        self._memory = MemoryGuard(micro_batch_size, learning.less_memory)
        self._buffers = BufferGuard(network.buffers())

    def take(self, batch: Batch, place: Place, *, wants_stop: bool) -> Outcome:
        """Learn from a batch, or leave it out.

        Args:
            wants_stop: this worker knows that the run is asked to stop.

        Raises:
            JobFailed: a guard says that going on is no use.
        """
        if batch.failed:
            self._tell_failed(batch, place)
        self._learning.set_learning_rate(self._num_updates)
        means = self._backward(batch, place)
        judge = self._judge_alone if self._replicas.is_alone else self._judge_together
        verdict = judge(batch, means, wants_stop)
        self.samples.observe(num_used=verdict.num_used, num_failed=verdict.num_failed)
        if verdict.num_used == 0:
            return Outcome(0, verdict.sums, verdict.wants_stop)
        scale_was_high = self._update(is_finite=verdict.is_finite)
        if verdict.is_finite:
            self.nonfinite.observe(is_finite=True)
            return Outcome(verdict.num_used, verdict.sums, verdict.wants_stop)
        self._buffers.restore()
        if verdict.is_cause:
            reason = "the loss or its gradient is not finite"
            self._say("skipped", place, reason=reason, ids=batch.ids)
        if not (scale_was_high and math.isfinite(verdict.sums[0])):
            self.nonfinite.observe(is_finite=False)
        return Outcome(0, verdict.sums, verdict.wants_stop)

    def state(self) -> dict[str, Any]:
        learning = self._learning
        return {
            "num_updates": self._num_updates,
            "optimizer": learning.optimizer.state_dict(),
            "scaler": learning.scaler.state_dict() if learning.scaler else None,
            "ema": learning.ema.module.state_dict() if learning.ema else None,
            "nonfinite": self.nonfinite.state(),
            "samples": self.samples.state(),
            "micro_batch_size": self._memory.size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        learning = self._learning
        self._num_updates = state["num_updates"]
        learning.optimizer.load_state_dict(state["optimizer"])
        if learning.scaler is not None:
            learning.scaler.load_state_dict(state["scaler"])
        if learning.ema is not None:
            learning.ema.module.load_state_dict(state["ema"])
        self.nonfinite.restore(state["nonfinite"])
        self.samples.restore(state["samples"])
        self._memory.size = min(self._memory.size, state["micro_batch_size"])

    # Gradients

    def _backward(self, batch: Batch, place: Place) -> list[Tensor]:
        """Gradients of the mean loss, added up over micro-batches; the means of loss and
        metrics."""
        self._buffers.keep()
        while True:
            self._seed_step(place)
            self._learning.optimizer.zero_grad(set_to_none=True)
            if not len(batch):
                return [torch.zeros((), device=self._device)] * (1 + len(self._learning.metrics))
            size = self._memory.size
            try:
                parts = batch.to(self._device).parts(size)
                means = [self._backward_part(part, len(batch)) for part in parts]
                if len(means) == 1:
                    return means[0]
                return [torch.stack(shares).sum() for shares in zip(*means, strict=True)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, which holds the graph of the failed attempt.
            message = self._memory.halve(min(size, len(batch)))
            self._buffers.restore()
            self._say("warning", place, message=message)  # it may be this worker's alone
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward_part(self, part: Batch, num_samples: int) -> list[Tensor]:
        """Adds the gradients of a part; its part in the means of loss and metrics."""
        learning = self._learning
        with learning.autocast():
            loss, metrics = learning.loss(self._network, part)
        share = len(part) / num_samples
        # Workers with fewer samples weigh less; _judge_together has the other half of this.
        weight = share if self._replicas.is_alone else len(part) / learning.batch_size
        weighted = loss if weight == 1 else loss * weight
        (learning.scaler.scale(weighted) if learning.scaler else weighted).backward()
        values = [loss.detach().float(), *(metric.detach().float() for metric in metrics)]
        return values if share == 1 else [value * share for value in values]

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

    # Verdict

    def _judge_alone(self, batch: Batch, means: list[Tensor], wants_stop: bool) -> _Verdict:
        num_used = len(batch)
        norm = self._clip() if num_used else means[0]
        *values, norm_value = torch.stack([*means, norm]).tolist()  # the step's one wait for a GPU
        is_finite = math.isfinite(values[0] + norm_value)
        sums = [value * num_used for value in values]
        return _Verdict(num_used, len(batch.failed), is_finite, not is_finite, sums, wants_stop)

    def _judge_together(self, batch: Batch, means: list[Tensor], wants_stop: bool) -> _Verdict:
        """Sums gradients and verdicts over all workers in one exchange."""
        loss_is_finite = torch.isfinite(means[0])
        fixed = means[0].new_tensor([len(batch), len(batch.failed), 0.0, wants_stop])
        fixed[_NONFINITE] = (~loss_is_finite).to(fixed.dtype)
        # One NaN in the sum would hide what the other workers have to say.
        verdict = torch.nan_to_num(torch.cat([fixed, torch.stack(means) * len(batch)]))
        total, gradient_is_finite = self._replicas.sum_step(self._parameters, verdict, _NONFINITE)
        numbers = total.tolist()
        num_used = round(numbers[_NUM_USED])
        is_finite = numbers[_NONFINITE] == 0
        if num_used:
            factor = self._learning.batch_size / num_used
            if factor != 1:
                gradients = [p.grad for p in self._parameters if p.grad is not None]
                torch._foreach_mul_(gradients, factor)
            is_finite = math.isfinite(self._clip().item()) and is_finite
        return _Verdict(
            num_used,
            round(numbers[_NUM_FAILED]),
            is_finite,
            not (gradient_is_finite and bool(loss_is_finite)),
            numbers[_NUM_FIXED:],
            numbers[_STOP] > 0,
        )

    def _update(self, *, is_finite: bool) -> bool:
        """Step if the gradients are finite; True if they are not because the scale of fp16 losses,
        which begins high and is lowered until it fits, was still too high."""
        learning = self._learning
        if is_finite:
            if learning.scaler is not None:
                learning.scaler.step(learning.optimizer)
            else:
                learning.optimizer.step()
            self._num_updates += 1
            if learning.ema is not None:
                learning.ema.update(self._network, self._num_updates)
        if learning.scaler is None:
            return False
        scale = learning.scaler.get_scale()
        learning.scaler.update()
        return not is_finite and scale > 1

    # Telling

    def _tell_failed(self, batch: Batch, place: Place) -> None:
        self.samples.reasons.update(batch.failed.values())
        reasons = sorted(set(batch.failed.values()))
        self._say("left_out", place, reasons=reasons, ids=list(batch.failed))

    def _say(self, event: str, place: Place, **fields: Any) -> None:
        rank = self._replicas.rank
        self._emit(event, epoch=place.epoch, batch=place.batch, rank=rank, **fields)

    def _seed_step(self, place: Place) -> None:
        """Dropout and the like depend on the place in the run alone."""
        first = _first_seed(self._seed, place.epoch, self._replicas.rank)
        seed = (first + place.batch) % 2**32
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)


@lru_cache
def _first_seed(seed: int, epoch: int, rank: int) -> int:
    """Of the seeds of an epoch's batches on one worker, which follow each other."""
    digest = hashlib.blake2b(repr((seed, epoch, rank)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
