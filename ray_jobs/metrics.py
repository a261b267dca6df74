"""Metrics of a binary classifier with bootstrap intervals, and the thresholds that maximise them.

Shapes: N rows; `y` [N] of 0 and 1, `p` [N], P(y = 1). A row is called positive where
`p >= threshold`. A metric that the rows do not define (AUC with one class, precision with nothing
called positive) is absent. numpy alone, so that a fit can measure every epoch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_jobs.bootstrap import group_resamples, percentile_interval
from ray_jobs.result import MetricValue

# Log-loss reads no probability closer to 0 or 1 than the resolution of the float32 it came from.
EPSILON = float(np.finfo(np.float32).eps)
NUM_ECE_BINS = 15  # of equal width, as in Guo et al. 2017
OBJECTIVES = ("f1", "accuracy", "auc", "log_loss")

Floats = NDArray[np.float64]


def binary_metrics(y: ArrayLike, p: ArrayLike, threshold: float) -> dict[str, float]:
    """Accuracy, F1, precision, recall, AUC, log-loss and expected calibration error.

    AUC counts ties as half (Mann-Whitney). Log-loss is in nats, with `p` clipped by `EPSILON`.
    The calibration error is the distance of the mean `p` from the share of positives in each of
    15 bins of `p`, averaged over rows (Naeini et al. 2015; bins as in Guo et al. 2017).

    Raises:
        ValueError: shapes differ; no rows; `y` other than 0 and 1; `p` not finite or beyond 0..1.
    """
    y, p = check_predictions(y, p)
    table = _Table(y, p, threshold, np.zeros(len(y), np.int64))
    return table.estimates()


def bootstrap_intervals(
    y: ArrayLike,
    p: ArrayLike,
    threshold: float,
    *,
    groups: ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, MetricValue]:
    """`binary_metrics` with percentile bootstrap intervals.

    With `groups` [N] whole groups are resampled, as the rows of one group are not independent
    (cluster bootstrap: Field & Welsh 2007, JRSS B 69, 369-390). With fewer than about 20 groups
    such intervals are too narrow; with a single group nothing can be known and there are none.

    Resamples that leave a metric undefined are left out of its interval; if they are more than
    `bootstrap.MAX_UNDEFINED_SHARE`, it has none. Nor has a metric that is the same in all of
    them, such as a recall of 1: that no error was seen does not bound the errors to come.

    Raises:
        ValueError: as `binary_metrics`, or `groups` of another length.
    """
    y, p = check_predictions(y, p)
    codes = np.arange(len(y)) if groups is None else group_codes(groups, len(y))
    table = _Table(y, p, threshold, codes)
    estimates = table.estimates()
    if table.num_groups == 1:
        return {name: MetricValue(value=value) for name, value in estimates.items()}
    chunks, gap_chunks = [], []
    for counts in group_resamples(table.num_groups, num_resamples, seed, row_cells=table.num_rows):
        chunks.append(table.metrics(counts))
        gap_chunks.append(table.calibration_gaps(counts))
    intervals = {}
    for name, value in estimates.items():
        draws = np.concatenate([chunk[name] for chunk in chunks])
        intervals[name] = percentile_interval(value, draws, confidence)
        if name == "ece" and intervals[name].low is not None:
            gaps = table.calibration_gaps(np.ones((1, table.num_groups)))[0]
            low, high = ece_interval(gaps, np.concatenate(gap_chunks), confidence)
            intervals[name] = MetricValue(value=value, low=float(low), high=float(high))
    return intervals


def best_threshold(y: ArrayLike, p: ArrayLike, metric: str) -> float:
    """The threshold of the best F1, or of the best accuracy if `metric` is that.

    It lies midway between two neighbouring scores; of equally good ones it is the highest.
    `auc` and `log_loss` need no threshold and take that of F1. It exceeds 1 where calling nothing
    positive is best though some score is 1.

    Raises:
        ValueError: as `binary_metrics`; an unknown metric; F1 without a positive row.
    """
    y, p = check_predictions(y, p)
    _check_objective(metric)
    scores, values = _cuts(y, p, "accuracy" if metric == "accuracy" else "f1")
    cut = int(np.argmax(values))
    above = scores[cut - 1] if cut else np.nextafter(1.0, 2.0)
    below = scores[cut] if cut < len(scores) else 0.0
    middle = float(below + (above - below) / 2)
    return middle if middle > below else float(above)  # neighbouring floats have no middle


def objective_value(y: ArrayLike, p: ArrayLike, metric: str) -> float:
    """One metric as early stopping and selection read it, in O(N log N).

    F1 and accuracy are taken at their best threshold: it is chosen on validation in any case, and
    a fixed one would mark down a model for a scale that calibration corrects.

    Raises:
        ValueError: as `binary_metrics`; an unknown metric; one that these labels do not define.
    """
    y, p = check_predictions(y, p)
    _check_objective(metric)
    if metric == "log_loss":
        return float(log_losses(y, p).mean())
    if metric == "auc":
        if y.min() == y.max():
            raise ValueError("auc needs rows of both classes")
        return float(placements(p[y == 1], p[y == 0]).mean())
    return float(_cuts(y, p, metric)[1].max())


def log_losses(y: NDArray[np.int8], p: Floats) -> Floats:
    """Log-loss of each row in nats, with `p` clipped by `EPSILON`. Shape [N]."""
    return -np.log(np.clip(np.where(y == 1, p, 1 - p), EPSILON, 1 - EPSILON))


def placements(scores: Floats, others: Floats) -> Floats:
    """Share of `others` below each score, ties counted half. Their mean is the AUC of `scores`."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return ranks / (2 * len(ordered))


def check_predictions(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.int8], Floats]:
    """Labels and probabilities as arrays [N] that every metric can trust.

    Raises:
        ValueError: names what is wrong with them.
    """
    labels, scores = np.asarray(y), np.asarray(p, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"y and p must be [N] of one length, but are {labels.shape} and {scores.shape}"
        )
    if not len(labels):
        raise ValueError("there are no rows to measure")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("y must hold 0 and 1 only")
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails both
        raise ValueError("p must be finite and between 0 and 1")
    return labels.astype(np.int8), scores


def group_codes(groups: ArrayLike, num_rows: int) -> NDArray[np.int64]:
    """Groups renumbered 0..G-1, shape [N].

    Raises:
        ValueError: `groups` is not [num_rows].
    """
    names = np.asarray(groups)
    if names.shape != (num_rows,):
        raise ValueError(f"groups must be [{num_rows}] as y, but is {names.shape}")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


class _Table:
    """Sums for each group, from which the metrics of any reweighting of the groups follow.

    Shapes: N rows, G groups, B reweightings, S sums.
    """

    def __init__(
        self, y: NDArray[np.int8], p: Floats, threshold: float, group: NDArray[np.int64]
    ) -> None:
        self.num_groups = int(group.max()) + 1
        self.num_rows = len(y)
        positive, called = y == 1, p >= threshold
        columns = [np.ones(len(y)), positive, called, positive & called, log_losses(y, p)]
        sums = [np.bincount(group, column, minlength=self.num_groups) for column in columns]
        self._sums = np.column_stack(sums)  # [G, S]
        bins = np.minimum((p * NUM_ECE_BINS).astype(np.int64), NUM_ECE_BINS - 1)
        cells = group * NUM_ECE_BINS + bins
        gaps = np.bincount(cells, p - y, minlength=self.num_groups * NUM_ECE_BINS)
        self._gaps = gaps.reshape(self.num_groups, NUM_ECE_BINS)
        order = np.argsort(p)
        positives, negatives = order[positive[order]], order[~positive[order]]
        self._positive_group, self._negative_group = group[positives], group[negatives]
        self._num_below = np.searchsorted(p[negatives], p[positives], "left")
        self._num_below_or_tied = np.searchsorted(p[negatives], p[positives], "right")

    def estimates(self) -> dict[str, float]:
        """The metrics that are defined with every group taken once."""
        values = self.metrics(np.ones((1, self.num_groups)))
        return {name: float(v[0]) for name, v in values.items() if not np.isnan(v[0])}

    def metrics(self, counts: Floats) -> dict[str, Floats]:
        """Every metric with group g taken `counts[:, g]` times, each [B]; NaN where undefined."""
        num_rows, num_positive, num_called, num_hits, loss = (counts @ self._sums).T
        num_pairs = num_positive * (num_rows - num_positive)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            return {
                "accuracy": 1 - (num_positive + num_called - 2 * num_hits) / num_rows,
                "f1": 2 * num_hits / (num_positive + num_called),
                "precision": num_hits / num_called,
                "recall": num_hits / num_positive,
                "auc": self._num_concordant(counts) / num_pairs,
                "log_loss": loss / num_rows,
                "ece": np.abs(self.calibration_gaps(counts)).sum(axis=1),
            }

    def calibration_gaps(self, counts: Floats) -> Floats:
        """Mean p less share of positives of each bin, times the bin's share of rows: [B, bins]."""
        return (counts @ self._gaps) / (counts @ self._sums[:, :1])

    def _num_concordant(self, counts: Floats) -> Floats:
        """Pairs of a positive and a negative in the right order, ties counted half: [B]."""
        num_negatives = np.zeros((len(counts), len(self._negative_group) + 1))
        np.cumsum(counts[:, self._negative_group], axis=1, out=num_negatives[:, 1:])
        twice = num_negatives[:, self._num_below] + num_negatives[:, self._num_below_or_tied]
        return np.einsum("bi,bi->b", counts[:, self._positive_group], twice) / 2


def ece_interval(gaps: Floats, resampled: Floats, confidence: float) -> tuple[float, float]:
    """Interval of a sum of absolute gaps [bins], given resampled gaps [B, bins].

    Noise always raises such a sum, and resampling adds as much again, so that the percentile
    interval lies above the truth. Low: the sum less the noise, sum |resampled - gaps|, which the
    triangle inequality justifies. High: the reversed percentile (Davison & Hinkley 1997, ch. 5),
    no less than the sum. On simulated classifiers, calibrated and not, with 300 to 15,000 rows,
    these held the truth in 91 to 100 % of cases; percentile intervals in 0 to 95 %.
    """
    total = np.abs(gaps).sum()
    noise = np.quantile(np.abs(resampled - gaps).sum(axis=1), confidence)
    lower_tail = np.quantile(np.abs(resampled).sum(axis=1), (1 - confidence) / 2)
    return max(total - noise, 0.0), max(2 * total - lower_tail, total)


def _check_objective(metric: str) -> None:
    if metric not in OBJECTIVES:
        raise ValueError(f"{metric!r} is not an objective; there is {', '.join(OBJECTIVES)}")


def _cuts(y: NDArray[np.int8], p: Floats, metric: str) -> tuple[Floats, Floats]:
    """The K distinct scores, falling, and F1 or accuracy with the first 0..K called positive."""
    order = np.argsort(p)[::-1]
    ranked = p[order]
    last_of_ties = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    num_hits = np.r_[0, np.cumsum(y[order], dtype=np.int64)[last_of_ties]]
    num_called = np.r_[0, last_of_ties + 1]
    num_positive = int(num_hits[-1])
    if metric == "accuracy":
        return ranked[last_of_ties], 1 - (num_positive + num_called - 2 * num_hits) / len(y)
    if not num_positive:
        raise ValueError("f1 needs at least one positive row")
    return ranked[last_of_ties], 2 * num_hits / (num_positive + num_called)
