"""When to stop: no improvement of the objective for a while, or metrics that stand still."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.result import Objective

DEGENERATE_EPOCHS = (
    8  # a model that gives the same metrics this often in a row has stopped learning
)


@dataclass
class EarlyStopping:
    """Follows the objective over the epochs.

    Args:
        objective: the metric and its mode.
        patience: epochs without an improvement before `should_stop`.
    """

    objective: Objective
    patience: int
    best: float | None = None
    best_epoch: int | None = None
    num_bad_epochs: int = 0
    _recent: list[tuple[float, ...]] = field(default_factory=list)

    def update(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Take the metrics of an epoch; True if its objective is the best so far.

        Raises:
            KeyError: the objective is not among the metrics.
        """
        value = metrics[self.objective.metric]
        self._recent = [*self._recent, tuple(metrics[key] for key in sorted(metrics))]
        self._recent = self._recent[-DEGENERATE_EPOCHS:]
        if math.isfinite(value) and self._is_better(value):
            self.best, self.best_epoch, self.num_bad_epochs = value, epoch, 0
            return True
        self.num_bad_epochs += 1
        return False

    @property
    def is_degenerate(self) -> bool:
        """The last epochs' metrics are all the same."""
        return len(self._recent) == DEGENERATE_EPOCHS and len(set(self._recent)) == 1

    @property
    def should_stop(self) -> bool:
        return self.is_degenerate or self.num_bad_epochs >= self.patience

    def state(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "num_bad_epochs": self.num_bad_epochs,
            "recent": self._recent,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.num_bad_epochs = state["num_bad_epochs"]
        self._recent = [tuple(metrics) for metrics in state["recent"]]

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        return value > self.best if self.objective.mode == "max" else value < self.best
