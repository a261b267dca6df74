"""Linear maps with a constant of each group, fitted so that a tenth of the rows may be wrong.

Least trimmed squares with concentration steps (Rousseeuw, Van Driessen: Computing LTS regression
for large data sets, 2006): a position that lags behind on a tenth of the rows is a position all the
same.

Shapes: N rows, K or C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KEPT_SHARE = 0.9
SCREEN_R2 = 0.2  # of an untrimmed fit, below which no trimming is tried
MIN_FREEDOM = 20  # rows beyond the parameters of a fit
MIN_NORM = 1e-9  # of a column's spread: less is rounding
MIN_DISTINCT = 10  # values that a map must reproduce: two levels fit any drift between runs


@dataclass(frozen=True)
class Fit:
    """t = slopes . x + a constant of each group, on the rows that fit best."""

    slopes: Floats
    r2: float  # adjusted, of the rows kept
    agreement: float  # share of all rows within 1 % of the target's range
    num_rows: int


def fit_trimmed(t: Floats, x: Floats, group: Ints) -> Fit | None:
    """t [N] as a linear map of x [N, K] and a constant for each group [N]; None if there are too
    few rows or values to tell, or an untrimmed fit is hopeless."""
    _, group = np.unique(group, return_inverse=True)
    num_parameters = int(group.max()) + 1 + x.shape[1]
    num_kept = int(np.ceil(KEPT_SHARE * len(t)))
    if num_kept - num_parameters < MIN_FREEDOM:
        return None
    kept = np.arange(len(t))
    for step in range(20):
        slopes, residual, total = _least_squares(t, x, group, kept)
        if total <= 0 or (step == 0 and 1 - residual @ residual / total < SCREEN_R2):
            return None
        nearest = np.sort(np.argsort(np.abs(residual), kind="stable")[:num_kept])
        if np.array_equal(nearest, kept):
            break
        kept = nearest
    if len(np.unique(t[kept])) < MIN_DISTINCT:
        return None
    error = residual[kept] @ residual[kept]
    freedom = len(kept) - num_parameters
    low, high = np.quantile(t, (0.05, 0.95))
    tolerance = 0.01 * ((high - low) or np.ptp(t))
    return Fit(
        slopes=slopes,
        r2=float(1 - error / total * (len(kept) - 1) / freedom),
        agreement=float(np.mean(np.abs(residual) <= tolerance)),
        num_rows=len(t),
    )


def _least_squares(t: Floats, x: Floats, group: Ints, kept: Ints) -> tuple[Floats, Floats, float]:
    """Slopes of the kept rows, the residuals of all, and the kept rows' sum of squares."""
    counts = np.maximum(np.bincount(group[kept], minlength=group.max() + 1), 1)
    both = np.column_stack([t, x])
    means = np.stack(
        [np.bincount(group[kept], column[kept], len(counts)) / counts for column in both.T], axis=1
    )
    centred = both - means[group]
    slopes = np.linalg.lstsq(centred[kept, 1:], centred[kept, 0], rcond=None)[0]
    residual = centred[:, 0] - centred[:, 1:] @ slopes
    return slopes, residual, float(centred[kept, 0] @ centred[kept, 0])


def unit_columns(x: Floats, group: Ints) -> Floats:
    """Columns of x [N, C] less their groups' means and of length 1, for correlations; 0 for
    constants and where nothing is measured."""
    centred = np.zeros_like(x)
    for g in np.unique(group):
        of_group = group == g
        known = ~np.isnan(x[of_group])
        sums = np.where(known, x[of_group], 0.0).sum(axis=0)
        mean = sums / np.maximum(known.sum(axis=0), 1)
        centred[of_group] = np.where(known, x[of_group] - mean, 0.0)
    norms = np.sqrt((centred**2).sum(axis=0))
    return np.divide(centred, norms, out=np.zeros_like(x), where=norms > MIN_NORM * np.sqrt(len(x)))
