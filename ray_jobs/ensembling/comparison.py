"""Score: a metric with what each row adds to it, so that two can be compared on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.metrics import Floats, log_losses, placements

_ROUNDING = 1e-12  # two blends with the same weights but for their last bits are equally good


@dataclass(frozen=True)
class Score:
    """A metric of N rows and its influence function on them.

    `influence` [N] has mean 0; its mean over a resample is, to first order, how far the metric
    moves there. Standard errors follow from its sums over clusters of dependent rows (for AUC:
    Obuchowski 1997, Biometrics 53; for F1: the delta method for a ratio).
    """

    value: float
    influence: Floats

    @classmethod
    def of_rows(cls, values: Floats) -> Score:
        """The mean of one value a row."""
        mean = float(values.mean())
        return cls(mean, values - mean)

    @classmethod
    def of_objective(
        cls, y: NDArray[np.int8], p: Floats, called: NDArray[np.bool_], metric: str
    ) -> Score:
        """An objective from probabilities [N] and decisions [N]; both classes must be there."""
        if metric == "log_loss":
            return cls.of_rows(log_losses(y, p))
        if metric == "accuracy":
            return cls.of_rows((called == y).astype(np.float64))
        if metric == "f1":
            hits = 2.0 * (called & (y == 1))
            marks = y + called.astype(np.float64)
            value = float(hits.sum() / marks.sum())
            return cls(value, (hits - value * marks) / marks.mean())
        assert metric == "auc", metric
        positive = y == 1
        below = np.empty_like(p)  # how well each row is placed among the other class
        below[positive] = placements(p[positive], p[~positive])
        below[~positive] = 1 - placements(p[~positive], p[positive])
        value = float(below[positive].mean())
        share = np.where(positive, positive.mean(), 1 - positive.mean())
        return cls(value, (below - value) / share)

    def __sub__(self, other: Score) -> Score:
        """The paired difference on the same rows: what is hard for both cancels out."""
        return Score(self.value - other.value, self.influence - other.influence)

    def stderr(self, clusters: NDArray[np.int64]) -> float:
        """Standard error where the rows of a cluster, numbered 0..C-1 in `clusters` [N], depend.

        With the small-sample factor C / (C - 1) (Cameron & Miller 2015, JHR 50).
        """
        sums = np.bincount(clusters, self.influence)
        factor = len(sums) / (len(sums) - 1)
        return float(np.sqrt(factor * np.sum(sums**2)) / len(self.influence))


def exceeds(score: Score, reference: Score, clusters: NDArray[np.int64]) -> bool:
    """Whether a score is above the reference by more than one standard error of the difference."""
    difference = score - reference
    return difference.value > difference.stderr(clusters) + _ROUNDING


def simplest_near_best(
    scores: Sequence[Score], clusters: NDArray[np.int64], mode: Literal["max", "min"]
) -> int:
    """Index of the first score, simplest first, that is within one standard error of the best.

    The one-standard-error rule of Breiman et al. 1984 (CART, section 3.4.3), on paired differences.
    """
    if mode == "min":
        best = min(scores, key=lambda score: score.value)
        near = [not exceeds(score, best, clusters) for score in scores]
    else:
        best = max(scores, key=lambda score: score.value)
        near = [not exceeds(best, score, clusters) for score in scores]
    return near.index(True)
