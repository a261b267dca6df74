"""The cluster bootstrap that all metrics share: whole groups are drawn, as their rows are not
independent (Field & Welsh 2007, JRSS B 69, 369-390).

Shapes: G groups, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ray_jobs.result import MetricValue

MAX_UNDEFINED_SHARE = 0.05  # of the resamples; a metric that more of them lack has no interval
_CELLS_PER_CHUNK = 2**18  # of the arrays held at a time: 2 MiB each, near the cache
_ROUNDING = 1e-12  # relative: sums in another order differ by as much

Floats = NDArray[np.float64]


def group_resamples(
    num_groups: int, num_resamples: int, seed: int, *, row_cells: int
) -> Iterator[Floats]:
    """How often each group is drawn, with as many draws as groups, in chunks [B, G].

    Args:
        row_cells: numbers that the caller holds for each resample; sets the size of the chunks.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS_PER_CHUNK // row_cells)
    for start in range(0, num_resamples, chunk):
        num = min(chunk, num_resamples - start)
        draws = rng.integers(num_groups, size=(num, num_groups))
        draws += np.arange(num)[:, None] * num_groups
        counts = np.bincount(draws.ravel(), minlength=num * num_groups)
        yield counts.reshape(num, num_groups).astype(np.float64)


def percentile_interval(value: float, draws: Floats, confidence: float) -> MetricValue:
    """A metric with the percentiles of its resamples [B]; NaN where one does not define it.

    There is no interval for a metric that too many resamples lack, nor for one that is the same in
    all of them, such as a recall of 1: that no error was seen does not bound the errors to come.
    """
    defined = draws[~np.isnan(draws)]
    if len(defined) < (1 - MAX_UNDEFINED_SHARE) * len(draws):
        return MetricValue(value=value)
    if np.ptp(defined) <= _ROUNDING * np.abs(defined).max():
        return MetricValue(value=value)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return MetricValue(value=value, low=float(low), high=float(high))
