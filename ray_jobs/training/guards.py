"""Guards: each watches for one way in which training goes wrong, and says what to do about it.

They are told what every worker is told, so all workers come to the same verdict. `state()` and
`restore()` carry them over a restart. Imports torch: for the code that trains.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ray_jobs.errors import JobFailed
from ray_jobs.training.spec import GuardSpec

ENOUGH_STEPS = 100  # before a share of steps says anything
ENOUGH_SAMPLES = 200  # before a share of samples does
OVERFITTING_EPOCHS = 4  # of rising validation loss beside a falling training loss


@dataclass
class NonFiniteGuard:
    """Steps skipped because the loss or its gradient was not finite."""

    spec: GuardSpec
    num_steps: int = 0
    num_skipped: int = 0
    num_in_a_row: int = 0

    def observe(self, *, is_finite: bool) -> None:
        """Take the verdict on a step.

        Raises:
            JobFailed: too many in a row, or too large a share of all.
        """
        self.num_steps += 1
        if is_finite:
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        if self.num_in_a_row >= self.spec.nonfinite_in_a_row:
            raise JobFailed(
                f"the loss or its gradient was not finite in {self.num_in_a_row} steps in a row; "
                "lower the learning_rate"
            )
        share = self.num_skipped / self.num_steps
        if self.num_steps >= ENOUGH_STEPS and share > self.spec.nonfinite_share:
            raise JobFailed(
                f"the loss or its gradient was not finite in {self.num_skipped} of "
                f"{self.num_steps} steps ({share:.0%}, more than "
                f"train.guards.nonfinite_share={self.spec.nonfinite_share:g}); "
                "lower the learning_rate"
            )

    def state(self) -> dict[str, int]:
        return {
            "num_steps": self.num_steps,
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
        }

    def restore(self, state: dict[str, int]) -> None:
        self.num_steps, self.num_skipped = state["num_steps"], state["num_skipped"]
        self.num_in_a_row = state["num_in_a_row"]


@dataclass
class SampleGuard:
    """Samples left out of their batches: pictures that cannot be read, tensors of another shape."""

    spec: GuardSpec
    num_seen: int = 0
    num_failed: int = 0
    num_empty_batches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of this worker alone

    def observe(self, *, num_used: int, num_failed: int) -> None:
        """Take the counts of a step, over all workers.

        Raises:
            JobFailed: more of all samples failed than `bad_share_stop`.
        """
        self.num_seen += num_used + num_failed
        self.num_failed += num_failed
        self.num_empty_batches += num_used == 0
        if self.num_seen >= ENOUGH_SAMPLES:
            self.check()

    def check(self) -> None:
        """Judge, however few the samples: at the end of an epoch.

        Raises:
            JobFailed: as `observe`.
        """
        if self.share > self.spec.bad_share_stop:
            commonest = "; ".join(f"{reason} ({n})" for reason, n in self.reasons.most_common(3))
            raise JobFailed(
                f"{self.num_failed} of {self.num_seen} samples could not be used "
                f"({self.share:.0%}, more than train.guards.bad_share_stop="
                f"{self.spec.bad_share_stop:g}){': ' + commonest if commonest else ''}; "
                "mend or remove them: the journal (events.jsonl) lists their ids"
            )

    @property
    def share(self) -> float:
        return self.num_failed / self.num_seen if self.num_seen else 0.0

    def warning(self) -> str | None:
        """What the result should say: nothing below `bad_share_warning`."""
        if self.share < self.spec.bad_share_warning or not self.num_failed:
            return None
        return (
            f"{self.num_failed} of {self.num_seen} samples could not be used and were left out "
            f"({self.share:.0%}); the journal (events.jsonl) lists their ids"
        )

    def state(self) -> dict[str, Any]:
        return {
            "num_seen": self.num_seen,
            "num_failed": self.num_failed,
            "num_empty_batches": self.num_empty_batches,
            "reasons": dict(self.reasons),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.num_seen, self.num_failed = state["num_seen"], state["num_failed"]
        self.num_empty_batches = state["num_empty_batches"]
        self.reasons = Counter(state["reasons"])


@dataclass
class MemoryGuard:
    """The number of samples held at once: halved when memory runs out, the batch staying whole."""

    size: int
    less_memory: str  # what a user can do where not even one sample fits

    def halve(self, tried: int) -> str:
        """Take note that `tried` samples were too many; returns what to say.

        Raises:
            JobFailed: not even one sample fits.
        """
        if tried <= 1:
            raise JobFailed(f"memory ran out with a single sample; {self.less_memory}")
        self.size = max(1, tried // 2)
        return (
            f"memory ran out with {tried} samples at once; from here on {self.size} at a time, "
            "their gradients added up: the batch stays the same"
        )


class BufferGuard:
    """Keeps a network's buffers, such as BatchNorm's statistics, as they were before a step: one
    that is skipped or tried again must leave nothing of its forward pass in them."""

    def __init__(self, buffers: Iterable[Tensor]):
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in buffers:
            by_dtype[buffer.dtype].append(buffer)  # of one dtype, they are copied in one go
        self._kept = [(each, [buffer.clone() for buffer in each]) for each in by_dtype.values()]
        self._versions = self._count()

    def keep(self) -> None:
        versions = self._count()
        if versions == self._versions:
            return  # most buffers are constants
        self._versions = versions
        for buffers, kept in self._kept:
            torch._foreach_copy_(kept, buffers)

    def _count(self) -> list[int]:
        """How often each buffer has been written to."""
        return [buffer._version for buffers, _ in self._kept for buffer in buffers]

    def restore(self) -> None:
        for buffers, kept in self._kept:
            torch._foreach_copy_(buffers, kept)


def check_outputs(outputs: Tensor) -> None:
    """What a network says must be numbers: weights that have become infinite are beyond mending.

    Raises:
        JobFailed: they are not finite.
    """
    if not bool(torch.isfinite(outputs).all()):
        raise JobFailed("the network's outputs are no longer finite; lower the learning_rate")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch, on any device, says that memory ran out."""
    # The CPU's allocator and MPS have no exception of their own.
    texts = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


@dataclass
class OverfittingGuard:
    """Notes, once, that validation loss rises while training loss falls."""

    losses: list[tuple[float, float]] = field(default_factory=list)  # (train, val) of the epochs
    noted_epoch: int | None = None

    def observe(self, epoch: int, train_loss: float, val_loss: float | None) -> str | None:
        """Take the losses of an epoch; returns what to say the first time."""
        if val_loss is None or not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            return None
        self.losses = [*self.losses, (train_loss, val_loss)][-(OVERFITTING_EPOCHS + 1) :]
        pairs = list(zip(self.losses, self.losses[1:], strict=False))
        overfits = len(pairs) == OVERFITTING_EPOCHS and all(
            later[0] < earlier[0] and later[1] > earlier[1] for earlier, later in pairs
        )
        if not overfits or self.noted_epoch is not None:
            return None
        self.noted_epoch = epoch
        return (
            f"overfitting since epoch {epoch - OVERFITTING_EPOCHS + 1}: the validation loss rises "
            "while the training loss falls; more data, augmentation or weight_decay would help"
        )

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "noted_epoch": self.noted_epoch}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses = [tuple(pair) for pair in state["losses"]]
        self.noted_epoch = state["noted_epoch"]
