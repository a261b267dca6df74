"""Recording sessions: which columns run with time, and where one recording ends and one begins.

Shapes: N rows in the order they were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COUNTER_SHARE = 0.9  # of the steps are +1: a reset every ten rows is still a counter
CLOCK_SHARE = 0.99  # of the steps go one way; noise goes either way half of the time
GAP_FACTOR = 300  # a pause of this many usual intervals ends a session
MIN_STEPS = 10  # too few steps tell nothing
NUM_BLOCKS = 50  # one long recording is cut into this many blocks of consecutive rows
AUTOCORRELATED = 0.5  # from this correlation of neighbouring rows on, the rows are a recording

Values = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class Clock:
    """A column that counts or runs with time."""

    reason: str
    is_start: NDArray[np.bool_]  # [N], rows at which it starts again or leaps ahead
    num_resets: int


def find_clock(values: Values, is_start: NDArray[np.bool_] | None = None) -> Clock | None:
    """A column as a clock, if it counts rows or runs with time, up or down.

    Args:
        values: the column, shape [N].
        is_start: rows at which a known group begins; the steps into them say nothing. Shape [N].
    """
    steps = np.diff(values)
    known = steps if is_start is None else steps[~is_start[1:]]
    # A clock may stand still: several readings a second, or the number of a day.
    moving = known[known != 0]
    if len(moving) < MIN_STEPS:
        return None
    if np.mean(moving < 0) > 0.5:
        values, known, moving = -values, -known, -moving
    if np.mean(known == 1) >= COUNTER_SHARE:
        return clock(values, "counts the rows (steps of 1)")
    if np.mean(moving > 0) >= CLOCK_SHARE:
        return clock(values, "runs with time (it hardly ever turns)")
    return None


def clock(values: Values, reason: str) -> Clock:
    """A column known to rise with time, cut where it falls back or leaps ahead."""
    steps = np.diff(values)
    is_reset, forward = steps < 0, steps[steps > 0]
    is_gap = steps > GAP_FACTOR * (np.median(forward) if len(forward) else np.inf)
    return Clock(reason, np.r_[True, is_reset | is_gap], int(is_reset.sum()))


def sessions_of(clocks: Mapping[str, Clock]) -> tuple[str, NDArray[np.int64]] | None:
    """The column that tells sessions apart, and each row's session 0, 1, ... [N]; None if one.

    Of several, the one that starts again most often: a session counter knows better than a clock.
    """
    cut = {name: clock for name, clock in clocks.items() if clock.is_start.sum() > 1}
    if not cut:
        return None
    name = max(cut, key=lambda name: (cut[name].num_resets, cut[name].is_start.sum()))
    return name, np.cumsum(cut[name].is_start) - 1


def blocks(num_rows: int) -> NDArray[np.int64]:
    """Consecutive rows in `NUM_BLOCKS` blocks of equal length. Shape [N]."""
    return np.arange(num_rows) * min(NUM_BLOCKS, num_rows) // num_rows


def is_autocorrelated(x: NDArray[np.float32]) -> bool:
    """Whether neighbouring rows resemble each other, so that they are a recording, not independent.

    The lag-1 autocorrelation of a column is 1 - eta / 2 with eta the mean square successive
    difference over the variance (J. von Neumann, Ann. Math. Statist. 12, 1941, p. 367); the median
    over the columns decides.

    Args:
        x: features, NaN where unknown. Shape [N, F].
    """
    if len(x) <= MIN_STEPS:
        return False
    correlations = []
    for column in x.T:
        known = column[~np.isnan(column)].astype(np.float64)
        steps = np.diff(column.astype(np.float64))
        steps = steps[~np.isnan(steps)]
        if len(steps) and known.var() > 0:
            correlations.append(1 - np.mean(steps**2) / (2 * known.var()))
    return bool(correlations) and float(np.median(correlations)) >= AUTOCORRELATED
