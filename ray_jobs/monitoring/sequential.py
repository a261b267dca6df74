"""Confidence sequences: intervals of a mean that hold at all times at once, so that looking early,
and stopping when it is decided, is allowed.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal
of the Royal Statistical Society B 86(1), 2024: the hedged capital process (section 4), with the
predictable plug-in bets of its empirical Bernstein sequence (section 3.2).

Who bets against a mean m at fair odds gains much only if the mean is not m: by Ville's inequality
the capital exceeds 1/alpha at any time with a probability of at most alpha. The values may depend
on those before them, as long as each has the same mean given these.

Values are in [0, 1], in the order in which they came; an earlier look saw the first of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_LARGEST_BET = 0.5  # of what one value could cost: all of it would end the game
_STEPS = 40  # of the bisection: 1e-12
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean, or the difference of two, and its interval after `num` values."""

    value: float
    low: float
    high: float
    num: int

    @property
    def is_steady(self) -> bool:
        """Whether the value is within. Where it is not, the mean has moved (or, with probability
        alpha, it is elsewhere): the interval is of one that has stayed."""
        return self.low - _ROUNDING <= self.value <= self.high + _ROUNDING


def mean(x: ArrayLike, alpha: float) -> Estimate:
    """The mean of values.

    Args:
        x: in [0, 1]. Shape [N], N > 0.
        alpha: the interval misses the mean at any time with at most this probability.
    """
    values = _checked(x)
    low = _lower(values, alpha / 2)
    high = 1 - _lower(1 - values, alpha / 2)
    # Both bounds hold but with probability alpha; where they cross, one of them does not.
    return Estimate(float(values.mean()), low, max(low, high), len(values))


def paired_difference(a: ArrayLike, b: ArrayLike, alpha: float) -> Estimate:
    """The mean of b - a, of pairs of values. Shapes [N], N > 0."""
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    half = mean((second - first + 1) / 2, alpha)
    return Estimate(float((second - first).mean()), 2 * half.low - 1, 2 * half.high - 1, half.num)


def difference(a: ArrayLike, b: ArrayLike, alpha: float) -> Estimate:
    """The mean of b less that of a, of two samples that have nothing to do with each other; each
    has half of alpha. Shapes [N] and [M], both above 0; `num` is N + M."""
    first, second = mean(a, alpha / 2), mean(b, alpha / 2)
    return Estimate(
        second.value - first.value,
        second.low - first.high,
        second.high - first.low,
        first.num + second.num,
    )


def _checked(x: ArrayLike) -> Floats:
    values = np.asarray(x, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("no values to take the mean of")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("values must be within 0 and 1")
    return values


def _lower(x: Floats, alpha: float) -> float:
    """The greatest m that is below the mean at the level 1 - alpha, by whatever has been seen."""
    bets, enough = _bets(x, alpha), math.log(1 / alpha)

    def is_excluded(m: float) -> bool:
        """Whether who bets that the mean is above m was ever rich. The less so, the greater m."""
        gains = np.log1p(np.minimum(bets, _LARGEST_BET / m) * (x - m))
        return bool(np.cumsum(gains).max() >= enough)

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if is_excluded(middle):
            low = middle
        else:
            high = middle
    return low


def _bets(x: Floats, alpha: float) -> Floats:
    """How much is put on each value, by those before it alone. Shape [N]."""
    t = np.arange(1, len(x) + 1)
    average = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - average) ** 2)) / (t + 1)
    before = np.r_[0.25, variance[:-1]]
    return np.sqrt(2 * math.log(1 / alpha) / (before * t * np.log1p(t)))
