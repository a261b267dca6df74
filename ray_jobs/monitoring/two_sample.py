"""Two-sample tests of live values against a reference, with effective sizes.

Live rows come in sequences, so that a thousand of them may say no more than thirty: each test
counts with as many values as are independent, estimated from blocks of the window in its order of
time.

Shapes: N live values, K indicators, B bins. Sizes: n of the live values, m of the reference.

Sources: B. Yurdakul and J. Naranjo, "Statistical properties of the population stability index",
Journal of Risk Model Validation 14(4) (2020) 89-100 (PSI is about (1/n + 1/m) chi-squared with
B - 1 degrees of freedom where nothing has drifted); H. Flyvbjerg and H. G. Petersen, Journal of
Chemical Physics 91 (1989) 461-466 (blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.monitoring.reference import Floats, Numbers, design_effect

MIN_REFERENCE = 10  # independent values of a reference
_MIN_EXPECTED = 10.0  # live values of a bin: with fewer the statistics stray from chi-squared
_BLOCKS = (5, 7, 10, 14, 20, 40, 80, 160, 320, 640)
_HALF = 0.5  # added to each count (Jeffreys' prior), so that an empty bin has a logarithm

TestName = Literal["ks", "chi2", "psi", "missing", "out_of_range"]


@dataclass(frozen=True)
class Test:
    """A hypothesis that nothing has drifted, and how well it fares."""

    name: TestName
    statistic: float
    p: float  # of this test alone
    p_adjusted: float = 1.0  # for all tests of the window; drift where it is at most alpha

    __test__ = False  # pytest: not a test case


def effective_size(indicators: NDArray[np.bool_], group_effect: float | None) -> float:
    """How many independent values would say as much as those of a window, in order of time.

    The design effect is the largest of blocks of any length up to a fifth of the window, which
    errs to the side of too few values: of independent ones about half are counted. It is no larger
    than that of the reference's groups, so that a value that changes once, or never, is told from
    one that changes slowly.

    Args:
        indicators: [N, K].
        group_effect: of the reference; None: it has no groups.
    """
    num = len(indicators)
    if num <= min(_BLOCKS):
        return float(num)
    if np.all(indicators == indicators[0]):  # blocks cannot tell how much that says
        return num / (group_effect or 1.0)
    place = np.arange(num)
    effect = max(design_effect(indicators, place * n // num) for n in _BLOCKS if n < num)
    return num / (effect if group_effect is None else min(effect, group_effect))


def kolmogorov_smirnov(known: Floats, reference: Numbers, n: float) -> Test:
    """Of the distribution functions of values [N]."""
    from scipy.stats import ks_2samp, kstwo

    m = reference.effective_size
    statistic = float(ks_2samp(known, reference.quantiles, method="asymp").statistic)
    p = float(kstwo.sf(statistic, max(1, round(n * m / (n + m)))))
    return Test("ks", statistic, p)


def psi(
    live: Floats, expected: Floats, n: float, m: float, alpha: float
) -> tuple[float, float | None, Test]:
    """PSI, its limit, and its test, of shares [B]. Neighbouring bins of few values are one."""
    from scipy.stats import chi2

    live, expected = _pooled(live, expected, n, m)
    smooth_live, smooth_expected = (
        (shares * size + _HALF) / (size + _HALF * len(shares))
        for shares, size in ((live, n), (expected, m))
    )
    value = float(((smooth_live - smooth_expected) * np.log(smooth_live / smooth_expected)).sum())
    if len(live) < 2:
        return value, None, Test("psi", value, 1.0)
    scale = 1 / n + 1 / m
    p = float(chi2.sf(value / scale, len(live) - 1))
    return value, float(scale * chi2.isf(alpha, len(live) - 1)), Test("psi", value, p)


def chi_squared(live: Floats, expected: Floats, n: float, m: float) -> Test:
    """Of the homogeneity of shares [B]."""
    from scipy.stats import chi2_contingency

    live, expected = _pooled(live, expected, n, m)
    if len(live) < 2:
        return Test("chi2", 0.0, 1.0)
    found = chi2_contingency(np.array([live * n, expected * m]), correction=False)
    return Test("chi2", float(found.statistic), float(found.pvalue))


def _pooled(live: Floats, expected: Floats, n: float, m: float) -> tuple[Floats, Floats]:
    """Shares [B] with neighbours made one until each is of enough values, by both together."""
    smaller = min(n, m)
    together = (live * n + expected * m) / (n + m) * smaller
    group, filled, number = [], 0.0, 0
    for count in together:
        if filled >= _MIN_EXPECTED:
            number, filled = number + 1, 0.0
        group.append(number)
        filled += count
    if filled < _MIN_EXPECTED:  # what is left over belongs to the last
        group = [min(one, max(number - 1, 0)) for one in group]
    pooled = (np.bincount(group, shares).astype(np.float64) for shares in (live, expected))
    return next(pooled), next(pooled)


def missing(share: float, reference: Numbers, n: float) -> Test:
    """Of the share of values that are missing: Fisher's exact test."""
    from scipy.stats import fisher_exact

    m = min(reference.num, max(reference.effective_size, MIN_REFERENCE))
    table = [
        [round(size * part), round(size * (1 - part))]
        for size, part in ((n, share), (m, reference.missing_share))
    ]
    p = float(fisher_exact(table).pvalue)
    return Test("missing", share - reference.missing_share, p)


def out_of_range(share: float, reference: Numbers, n: float) -> Test:
    """Of n more values from where m came from, those beyond the least and the greatest of the m
    are beta-binomial with 2 and m - 1 (order statistics of exchangeable values)."""
    from scipy.stats import betabinom

    m = max(2, int(reference.effective_size))
    p = float(betabinom.sf(np.floor(share * n) - 1, int(n), 2, m - 1))
    return Test("out_of_range", share, p)
