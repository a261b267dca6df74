"""ROC, precision-recall, reliability and confusion of a split's predictions, as arrays to draw.

In numpy, because scikit-learn takes seconds to import and a report needs nothing else of it; the
tests hold these against scikit-learn. Shapes: N rows; `y` [N] of 0 and 1, `p` [N], P(y = 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.metrics import NUM_ECE_BINS

Floats = NDArray[np.float64]
Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Ranking:
    """Counts of rows at or above every distinct score, from the highest score down. Shapes [T]."""

    thresholds: Floats
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @property
    def recall(self) -> Floats:
        return self.true_positives / self.true_positives[-1]

    @property
    def false_positive_rate(self) -> Floats:
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> Floats:
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def f1(self) -> Floats:
        num_called = self.true_positives + self.false_positives
        return 2 * self.true_positives / (self.true_positives[-1] + num_called)

    @property
    def average_precision(self) -> float:
        """Mean precision weighted by the gain in recall, without interpolation."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    def last_above(self, threshold: float) -> int | None:
        """Index of the last score that is still at or above the threshold."""
        num_above = int(np.sum(self.thresholds >= threshold))
        return num_above - 1 if num_above else None


def rank(y: Labels, p: Floats) -> Ranking | None:
    """Rank rows by score; None unless both classes are there."""
    if y.min(initial=1) == y.max(initial=0):
        return None
    order = np.argsort(-p, kind="stable")
    score, positive = p[order], y[order] == 1
    last = np.flatnonzero(np.r_[score[1:] != score[:-1], True])  # of each run of equal scores
    true_positives = np.cumsum(positive)[last]
    return Ranking(score[last], true_positives, last + 1 - true_positives)


@dataclass(frozen=True)
class Reliability:
    """Rows in bins of equal width over [0, 1] by predicted probability. Shapes [B]."""

    num_rows: NDArray[np.int64]
    num_positive: NDArray[np.int64]
    mean_probability: Floats  # NaN in an empty bin

    @property
    def frequency(self) -> Floats:
        """Share of positives in each bin, NaN in an empty one."""
        return _ratio(self.num_positive, self.num_rows)


def reliability(y: Labels, p: Floats) -> Reliability:
    """Predicted probability against frequency, in the bins of the calibration error.

    Source: Niculescu-Mizil and Caruana, "Predicting good probabilities", ICML 2005.
    """
    bins = np.minimum((p * NUM_ECE_BINS).astype(np.int64), NUM_ECE_BINS - 1)
    num_rows = np.bincount(bins, minlength=NUM_ECE_BINS)
    total = np.bincount(bins, weights=p, minlength=NUM_ECE_BINS)
    return Reliability(
        num_rows=num_rows,
        num_positive=np.bincount(bins[y == 1], minlength=NUM_ECE_BINS),
        mean_probability=_ratio(total, num_rows),
    )


def confusion(y: Labels, p: Floats, threshold: float) -> list[list[int]]:
    """Counts [actual][answered] of class 0 and 1; the answer is 1 at or above the threshold."""
    return np.bincount(2 * (y == 1) + (p >= threshold), minlength=4).reshape(2, 2).tolist()


def simplify(points: Floats, tolerance: float) -> NDArray[np.int64]:
    """Which points of a line [P, 2] to keep so that the rest lie within `tolerance` of it: [Q].

    Source: Douglas and Peucker, Cartographica 10(2), 1973.
    """
    kept = {0, len(points) - 1}
    pending = [(0, len(points) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        chord = points[last] - points[first]
        offset = points[first + 1 : last] - points[first]
        along = np.clip(offset @ chord / max(float(chord @ chord), 1e-12), 0, 1)
        distance = np.hypot(*(offset - along[:, None] * chord).T)
        furthest = int(np.argmax(distance))
        if distance[furthest] > tolerance:
            middle = first + 1 + furthest
            kept.add(middle)
            pending += [(first, middle), (middle, last)]
    return np.array(sorted(kept))


def _ratio(part: NDArray, whole: NDArray) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
