"""Confidence sequences: that looking early is allowed, and that a real difference is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from ray_jobs.monitoring.sequential import Estimate, difference, mean, paired_difference

ALPHA, NUM_RUNS = 0.1, 400
# More than so many of 400 has a probability below 1 in 10,000 if each has one of ALPHA.
MOST = int(binom.isf(1e-4, NUM_RUNS, ALPHA))

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def excludes_zero(estimate: Estimate) -> bool:
    return not estimate.low <= 0 <= estimate.high


def richest(x: list[float], m: float, alpha: float) -> float:
    """The most that is ever owned, of 1, by who bets that the mean is above m; value by value."""
    capital = most = 1.0
    average, squares, variance = 0.5, 0.25, 0.25
    for t, value in enumerate(x, start=1):
        bet = math.sqrt(2 * math.log(1 / alpha) / (variance * t * math.log(1 + t)))
        capital *= 1 + min(bet, 0.5 / m) * (value - m)
        most = max(most, capital)
        average += (value - average) / (t + 1)
        squares += (value - average) ** 2
        variance = squares / (t + 1)
    return most


def test_at_the_lower_bound_who_bets_has_just_become_rich_enough() -> None:
    x = (np.random.default_rng(0).random(200) < 0.7).astype(float).tolist()
    low = mean(x, 2 * 0.05).low
    assert 0.5 < low < 0.7
    assert richest(x, low, 0.05) == pytest.approx(1 / 0.05, rel=1e-6)


@given(x=VALUES)
def test_an_earlier_look_never_knew_what_a_later_one_does_not(x: list[float]) -> None:
    """The bounds of the first values hold for all: so the last look is as good as every look."""
    whole = mean(x, ALPHA)
    for num in range(1, len(x) + 1):
        part = mean(x[:num], ALPHA)
        assert part.low <= whole.low + 1e-9
        assert part.num == num
        assert 0 <= part.low <= part.high <= 1


@given(x=VALUES)
def test_turned_around_it_is_the_same(x: list[float]) -> None:
    one, other = mean(x, ALPHA), mean([1 - value for value in x], ALPHA)
    if one.low < one.high and other.low < other.high:
        assert one.low == pytest.approx(1 - other.high, abs=1e-6)
        assert one.high == pytest.approx(1 - other.low, abs=1e-6)


@given(a=VALUES, alpha=st.floats(0.01, 0.5))
def test_what_is_equal_is_never_decided(a: list[float], alpha: float) -> None:
    found = paired_difference(a, a, alpha)
    assert found.value == 0
    assert found.low <= 0 <= found.high


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_looking_after_each_value_misses_no_more_often_than_said(p: float) -> None:
    """Where the truth is left out once, at whichever look, it is left out at the end."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(NUM_RUNS):
        found = mean(rng.random(600) < p, ALPHA)
        missed += not found.low <= p <= found.high
    assert missed <= MOST


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_without_a_difference_two_samples_are_decided_no_more_often_than_said(share: float) -> None:
    rng = np.random.default_rng(2)
    decided = 0
    for _ in range(NUM_RUNS):
        right, is_other = rng.random(500) < 0.8, rng.random(500) < share
        decided += excludes_zero(difference(right[~is_other], right[is_other], ALPHA))
    assert decided <= MOST


@pytest.mark.parametrize("disagreement", [0.02, 0.4])
def test_without_a_difference_pairs_are_decided_no_more_often_than_said(
    disagreement: float,
) -> None:
    rng = np.random.default_rng(3)
    decided = 0
    for _ in range(NUM_RUNS):
        first = rng.random(500) < 0.5
        second = first ^ (rng.random(500) < disagreement)
        decided += excludes_zero(paired_difference(first, second, ALPHA))
    assert decided <= MOST


def test_a_test_that_is_not_made_for_it_is_fooled_by_looking() -> None:
    """What the above would find: the usual z-test, looked at after each of 500 pairs."""
    rng = np.random.default_rng(3)
    n = np.arange(1, 501)
    decided = 0
    for _ in range(NUM_RUNS):
        total = np.cumsum(rng.integers(0, 2, 500) - rng.integers(0, 2, 500))
        decided += bool((np.abs(total[29:]) > 1.645 * np.sqrt(n[29:] * 0.5)).any())
    assert decided > MOST


def test_a_real_difference_is_decided() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        first = rng.random(3000) < 0.85
        second = first | (rng.random(3000) < 0.15)  # right where the first is wrong, at times
        found = paired_difference(first, second, 0.05)
        assert 0 < found.low <= 0.15 * 0.15 <= found.high
        far = rng.random(3000) < 0.7
        apart = difference(far, second[:1500], 0.05)
        assert 0 < apart.low < apart.value < apart.high
        assert apart.num == 4500


def test_it_narrows_as_it_should() -> None:
    """At 10,000 values within three times the width of an interval that is looked at only once."""
    x = np.random.default_rng(5).random(10_000) < 0.3
    found = mean(x, 0.05)
    once = 2 * 1.96 * math.sqrt(0.3 * 0.7 / len(x))
    assert once < found.high - found.low < 3 * once


@pytest.mark.parametrize("x", [[], [1.1], [-0.1], [math.nan], [[0.5]]])
def test_what_it_cannot_take(x: list) -> None:
    with pytest.raises(ValueError, match="values"):
        mean(x, 0.05)


def test_pairs_have_two() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([0, 1], [1], 0.05)
