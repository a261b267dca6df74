"""By how much one model is better than another on the same test rows, and how sure that is.

Both are scored on the same resamples of the rows' independent groups, so that what makes a group
hard for both does not widen the interval (paired cluster bootstrap: Field & Welsh 2007, JRSS B 69,
369-390; Koehn 2004, EMNLP, 388-395).

Shapes: N rows, G groups, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.bootstrap import MAX_UNDEFINED_SHARE, group_resamples
from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.gcode_metrics import GcodeLines, Tolerance
from ray_jobs.gcode_metrics import _Table as GcodeTable
from ray_jobs.gcode_predictions import GcodePredictions
from ray_jobs.metrics import _Table as BinaryTable
from ray_jobs.metrics import group_codes
from ray_jobs.multiclass import _Table as ClassTable
from ray_jobs.predictions import Predictions
from ray_jobs.result import Objective

NUM_RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Binary:
    """What an ensemble said of test."""

    predictions: Predictions
    threshold: float


@dataclass(frozen=True)
class Decoded:
    """What a decoder of G-code said of test."""

    predictions: GcodePredictions
    tolerance: Tolerance


Scored = Binary | Decoded | ClassPredictions


@dataclass(frozen=True)
class Margin:
    """The objective of one less that of the other, turned so that more is better.

    Either is None where the rows do not define it; `low` and `high` with a single group, too.
    """

    value: float | None
    low: float | None = None  # one-sided: above it with the given confidence
    high: float | None = None  # likewise below it


def margin(
    one: Scored, other: Scored, objective: Objective, *, confidence: float, seed: int = 0
) -> Margin:
    """By how much `one` is better.

    Args:
        confidence: of each of the two bounds.

    Raises:
        ValueError: they are not predictions of the same rows.
    """
    order, others = np.argsort(_row_id(one)), np.argsort(_row_id(other))
    if type(one) is not type(other) or not _same_rows(one, order, other, others):
        raise ValueError("the two models were not tested on the same rows")
    codes = group_codes(_group(one)[order], len(order))
    a = _values(one, order, codes, objective.metric, seed)
    b = _values(other, others, codes, objective.metric, seed)
    difference = a - b if objective.mode == "max" else b - a
    value, draws = float(difference[0]), difference[1:]
    if np.isnan(value):
        return Margin(None)
    defined = draws[~np.isnan(draws)]
    if codes.max() == 0 or len(defined) < (1 - MAX_UNDEFINED_SHARE) * len(draws):
        return Margin(value)
    low, high = np.quantile(defined, [1 - confidence, confidence])
    return Margin(value, float(low), float(high))


def _values(
    scored: Scored, order: NDArray[np.int64], codes: NDArray[np.int64], metric: str, seed: int
) -> Floats:
    """The metric with every group once, then of the resamples; NaN where undefined. [1 + B]"""
    num_groups = int(codes.max()) + 1
    once = np.ones((1, num_groups))
    resamples = group_resamples(num_groups, NUM_RESAMPLES, seed, row_cells=len(order))
    if isinstance(scored, Binary):
        rows = scored.predictions
        binary = BinaryTable(rows.y[order], rows.ensemble[order], scored.threshold, codes)
        chunks = [binary.metrics(counts)[metric] for counts in (once, *resamples)]
        return np.concatenate(chunks)
    if isinstance(scored, ClassPredictions):
        classes = ClassTable(scored.y[order], scored.p[order], codes)
        chunks = [classes.metrics(counts @ classes.sums)[metric] for counts in (once, *resamples)]
        return np.concatenate(chunks)
    true, said = (
        _taken(lines, order) for lines in (scored.predictions.true, scored.predictions.predicted)
    )
    decoded = GcodeTable(true, said, scored.tolerance, codes)
    first = decoded.estimates().get(metric, np.nan)
    return np.concatenate([[first], decoded.draws(NUM_RESAMPLES, seed)[metric]])


def _same_rows(
    one: Scored, order: NDArray[np.int64], other: Scored, others: NDArray[np.int64]
) -> bool:
    if not np.array_equal(_row_id(one)[order], _row_id(other)[others]):
        return False
    return all(
        np.array_equal(a[order], b[others], equal_nan=a.dtype.kind == "f")
        for a, b in zip(_truth(one), _truth(other), strict=True)
    )


def _row_id(scored: Scored) -> NDArray[np.int64]:
    return scored.row_id if isinstance(scored, ClassPredictions) else scored.predictions.row_id


def _group(scored: Scored) -> NDArray[np.int64]:
    return scored.group if isinstance(scored, ClassPredictions) else scored.predictions.group


def _truth(scored: Scored) -> tuple[NDArray, ...]:
    if isinstance(scored, ClassPredictions):
        return (np.array(scored.classes)[scored.y],)
    if isinstance(scored, Binary):
        return (scored.predictions.y,)
    # Commands are numbered by what each train has: the values say what the line is.
    return scored.predictions.true.param_type, scored.predictions.true.param_value


def _taken(lines: GcodeLines, order: NDArray[np.int64]) -> GcodeLines:
    return GcodeLines(lines.command[order], lines.param_type[order], lines.param_value[order])
