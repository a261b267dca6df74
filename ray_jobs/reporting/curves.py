"""ROC, precision-recall, reliability and confusion of a split's predictions, as arrays to draw.

In numpy, because scikit-learn takes seconds to import and `emberline report` needs nothing else of it; the tests
hold these against scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
    def average_precision(self) -> float:
        """Mean precision weighted by the gain in recall, without interpolation."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    def last_above(self, threshold: float) -> int | None:
        """Index of the last score that is still at or above the threshold."""
        num_above = int(np.sum(self.thresholds >= threshold))
        return num_above - 1 if num_above else None


def rank(y: NDArray[np.int8], probability: Floats) -> Ranking | None:
    """Rank rows by score; None if a score is not finite or only one class is there."""
    if not np.isfinite(probability).all() or y.min(initial=1) == y.max(initial=0):
        return None
    order = np.argsort(-probability, kind="stable")
    score, positive = probability[order], y[order] == 1
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


def reliability(y: NDArray[np.int8], probability: Floats, *, num_bins: int) -> Reliability | None:
    """Bin rows by predicted probability (Niculescu-Mizil and Caruana, ICML 2005); None if a score is not finite."""
    if not len(y) or not np.isfinite(probability).all():
        return None
    index = np.clip((probability * num_bins).astype(int), 0, num_bins - 1)
    num_rows = np.bincount(index, minlength=num_bins)
    return Reliability(
        num_rows=num_rows,
        num_positive=np.bincount(index[y == 1], minlength=num_bins),
        mean_probability=_ratio(
            np.bincount(index, weights=probability, minlength=num_bins), num_rows
        ),
    )


def confusion(
    y: NDArray[np.int8], probability: Floats, threshold: float
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Counts [actual][answered] of class 0 and 1, answering 1 at or above the threshold; None if a score is not finite."""
    if not np.isfinite(probability).all():
        return None
    counts = np.bincount(2 * (y == 1) + (probability >= threshold), minlength=4)
    true_negative, false_positive, false_negative, true_positive = counts.tolist()
    return (true_negative, false_positive), (false_negative, true_positive)


def simplify(points: Floats, tolerance: float) -> Floats:
    """Leave out points that lie within `tolerance` of the line through those kept. Shape [P, 2] -> [Q, 2].

    Source: Douglas and Peucker, Cartographica 10(2), 1973.
    """
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, -1]] = True
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
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return points[keep]


def _ratio(part: NDArray, whole: NDArray) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
