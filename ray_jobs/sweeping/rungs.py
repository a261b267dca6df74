"""Rungs of asynchronous successive halving: who stands on each, and who may climb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.sweeping.spec import SweepSpec

Mode = Literal["max", "min"]
Score = Annotated[float, Field(allow_inf_nan=False)] | None  # None: the trial failed


class Rung(BaseModel):
    """One rung: the best value of each trial that was trained this far, and who went on."""

    model_config = ConfigDict(extra="forbid")

    epochs: int
    values: dict[int, Score] = {}  # trial -> its best value within `epochs`, in order of arrival
    promoted: list[int] = []


def rung_epochs(grace_epochs: int, max_epochs: int, reduction_factor: int) -> list[int]:
    """Epochs at which trials are compared, and last the epochs of a full training."""
    epochs = []
    level = grace_epochs
    while level < max_epochs:
        epochs.append(level)
        level *= reduction_factor
    return [*epochs, max_epochs]


def rungs_of(spec: SweepSpec) -> list[int]:
    """The rungs of a sweep; without a scheduler there is the last alone."""
    if spec.scheduler == "none":
        return [spec.max_epochs]
    return rung_epochs(spec.grace_epochs, spec.max_epochs, spec.reduction_factor)


class Rungs:
    """The promotions of Li et al. 2018 ("A System for Massively Parallel Hyperparameter Tuning",
    algorithm 2, get_job): a trial climbs when it is among the best 1/eta of its rung.

    Equal values go to the trial with the lower number. The outcome depends on nothing but the order
    of the calls.
    """

    def __init__(self, epochs: Sequence[int], reduction_factor: int, mode: Mode):
        assert list(epochs) == sorted(set(epochs)), epochs
        self.rungs = [Rung(epochs=level) for level in epochs]
        self._eta = reduction_factor
        self._sign = 1.0 if mode == "max" else -1.0

    @property
    def top(self) -> int:
        return len(self.rungs) - 1

    def record(self, trial: int, level: int, value: float | None) -> None:
        """The trial has reached a rung. One that failed counts as the worst there is."""
        assert trial not in self.rungs[level].values, (trial, level)
        self.rungs[level].values[trial] = value

    def candidates(self, level: int) -> list[int]:
        """The best floor(n / eta) of the n trials of a rung, best first."""
        values = self.rungs[level].values
        ranked = sorted(values, key=lambda trial: (-self._rank(values[trial]), trial))
        best = ranked[: len(values) // self._eta]
        return [trial for trial in best if values[trial] is not None]

    def promotable(self) -> tuple[int, int] | None:
        """The trial to promote next and the rung it stands on: from the highest rung that has
        one."""
        for level in reversed(range(self.top)):
            for trial in self.candidates(level):
                if trial not in self.rungs[level].promoted:
                    return trial, level
        return None

    def promote(self, trial: int, level: int) -> None:
        assert trial not in self.rungs[level].promoted, (trial, level)
        self.rungs[level].promoted.append(trial)

    def _rank(self, value: float | None) -> float:
        return -math.inf if value is None else self._sign * value
