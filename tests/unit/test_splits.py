from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_jobs.data.splits import assign_splits
from ray_jobs.errors import DataError
from ray_jobs.sections import SplitShares

SHARES = SplitShares()
TARGETS = np.array([0.7, 0.15, 0.15])


def shares_of(
    split: NDArray[np.int8], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    chosen = split if mask is None else split[mask]
    return np.bincount(chosen, minlength=3) / len(chosen)


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Labels and groups, of which each class has at least three."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=3, max_size=60))
    rates = draw(
        st.lists(st.sampled_from([0, 0.1, 0.5, 1]), min_size=len(sizes), max_size=len(sizes))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    group = rng.permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    y = (rng.random(len(group)) < np.array(rates)[group // 7]).astype(np.int8)
    assume(all(len(np.unique(group[y == label])) >= 3 for label in (0, 1)))
    return y, group


@given(grouped_labels(), st.integers(0, 100))
def test_groups_are_whole_and_each_split_has_both_classes(
    data: tuple[NDArray[np.int8], NDArray[np.int64]], seed: int
) -> None:
    y, group = data
    split = assign_splits(y, group, SHARES, seed=seed)
    assert len(split) == len(y)
    for code in np.unique(group):
        assert len(np.unique(split[group == code])) == 1
    for index in range(3):
        assert set(y[split == index]) == {0, 1}
    assert np.array_equal(split, assign_splits(y, group, SHARES, seed=seed))


@given(st.integers(60, 400), st.floats(0.05, 0.95), st.integers(0, 2**16))
def test_small_groups_meet_the_shares(num_groups: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), rng.integers(1, 11, num_groups))
    y = (rng.random(len(group)) < rate).astype(np.int8)
    assume(all(len(np.unique(group[y == label])) >= 3 for label in (0, 1)))
    split = assign_splits(y, group, SHARES, seed=seed)
    assert np.abs(shares_of(split) - TARGETS).max() < 0.03
    rarer = min((0, 1), key=lambda label: int(np.sum(y == label)))
    if np.sum(y == rarer) > 100:
        assert np.abs(shares_of(split, y == rarer) - TARGETS).max() < 0.04


@pytest.mark.parametrize("test_share", [0.15, 0.3])
def test_single_rows_meet_the_shares_exactly(test_share: float) -> None:
    y = (np.arange(200_000) % 5 == 0).astype(np.int8)
    shares = SplitShares(train=0.85 - test_share, val=0.15, test=test_share)
    split = assign_splits(y, np.arange(len(y)), shares, seed=0)
    targets = [0.85 - test_share, 0.15, test_share]
    for label in (0, 1):
        assert shares_of(split, y == label) == pytest.approx(targets, abs=1e-4)
    other = assign_splits(y, np.arange(len(y)), shares, seed=1)
    assert np.mean(split == other) < 0.7


def test_few_groups_are_split_the_best_way() -> None:
    """10 : 15 : 60 : 15 rows of balanced classes leave one way that fits the shares exactly."""
    group = np.repeat([0, 1, 2, 3], [10 * 2, 15 * 2, 60 * 2, 15 * 2])
    y = np.tile([0, 1], len(group) // 2).astype(np.int8)
    split = assign_splits(y, group, SHARES, seed=0)
    assert set(split[(group == 0) | (group == 2)]) == {0}
    assert {split[20], split[-1]} == {1, 2}


def test_of_equal_ways_test_gets_more_of_its_rarer_class() -> None:
    """val and test want the same share, so the two small groups may as well change places."""
    sizes = {0: (500, 500), 1: (90, 2), 2: (3, 30)}  # group -> rows of each class
    group = np.concatenate([np.full(sum(counts), code) for code, counts in sizes.items()])
    y = np.concatenate([np.repeat([0, 1], counts) for counts in sizes.values()]).astype(np.int8)
    for seed in range(5):
        split = assign_splits(y, group, SHARES, seed=seed)
        assert set(split[group == 0]) == {0}
        assert set(split[group == 2]) == {2}


def test_a_rare_class_reaches_every_split() -> None:
    group = np.repeat(np.arange(1000), 20)
    y = np.zeros(len(group), np.int8)
    y[[5, 9_000, 15_000]] = 1
    split = assign_splits(y, group, SHARES, seed=0)
    assert sorted(split[y == 1]) == [0, 1, 2]
    assert shares_of(split) == pytest.approx(TARGETS, abs=0.01)


def test_a_class_too_rare_to_split_is_refused() -> None:
    group = np.repeat(np.arange(20), 10)
    y = np.zeros(200, np.int8)
    y[:15] = 1
    with pytest.raises(DataError) as raised:
        assign_splits(y, group, SHARES, seed=0, grouped_by="column 'room'")
    assert str(raised.value) == (
        "class 1 of the label stands in 2 independent groups (15 rows; grouped by column 'room'), "
        "but train, val and test need one each and a group is never cut. Add data, or name a "
        "finer data.group_column"
    )
