from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_jobs.data.images.splits import assign_splits
from ray_jobs.errors import DataError
from ray_jobs.sections import SplitShares

SHARES = SplitShares()
CLASSES = [f"class-{c}" for c in range(8)]


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and groups, each class in at least three groups of its own, and some groups mixed."""
    labels: list[int] = []
    groups: list[int] = []
    for c in draw(st.sets(st.integers(0, 7), min_size=1)):
        for size in draw(st.lists(st.integers(1, 5), min_size=3, max_size=12)):
            labels += [c] * size
            groups += [len(groups)] * size
    for _ in range(draw(st.integers(0, 3))):
        mixed = draw(st.lists(st.sampled_from(sorted(set(labels))), min_size=2, max_size=4))
        labels += mixed
        groups += [10_000 + len(groups)] * len(mixed)
    return np.array(labels), np.array(groups)


@given(labelled_groups(), st.integers(0, 50), st.randoms(use_true_random=False))
def test_groups_are_whole_classes_everywhere_and_order_nothing(
    data: tuple[NDArray[np.int64], NDArray[np.int64]], seed: int, random: object
) -> None:
    label, group = data
    split = assign_splits(label, group, CLASSES, SHARES, seed=seed)
    for code in np.unique(group):
        assert len(np.unique(split[group == code])) == 1
    for c in np.unique(label):
        assert set(split[label == c].tolist()) == {0, 1, 2}
    order = np.arange(len(label))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = assign_splits(label[order], group[order], CLASSES, SHARES, seed=seed)
    assert np.array_equal(again, split[order])


@given(st.lists(st.integers(20, 80), min_size=2, max_size=8), st.integers(0, 50))
def test_the_shares_are_met_in_each_class(sizes: list[int], seed: int) -> None:
    label = np.repeat(np.arange(len(sizes)), sizes)
    split = assign_splits(label, np.arange(len(label)), CLASSES, SHARES, seed=seed)
    for c, size in enumerate(sizes):
        counts = np.bincount(split[label == c], minlength=3)
        assert np.abs(counts - size * np.array([0.7, 0.15, 0.15])).max() < 1


def test_the_seed_decides() -> None:
    label = np.repeat([0, 1], 30)
    one, other = (assign_splits(label, np.arange(60), CLASSES, SHARES, seed=s) for s in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_goes_to_train(seed: int) -> None:
    group = np.array([0] * 30 + [1, 2, 3] * 2 + [4] * 30 + [5, 6, 7] * 2)
    label = np.repeat([0, 1], 36)
    split = assign_splits(label, group, CLASSES, SHARES, seed=seed)
    assert set(split[np.isin(group, [0, 4])].tolist()) == {0}


def test_a_class_of_two_groups_is_refused() -> None:
    label = np.array([0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(DataError) as raised:
        assign_splits(label, np.array([0, 1, 2, 3, 3, 4, 4]), ["cans", "jars"], SHARES, seed=0)
    assert str(raised.value) == (
        "too few pictures for train, val and test to have one each: 'jars' (4 usable, 2 of them "
        "independent). Add pictures, map the class elsewhere in data.sources, or leave it out in "
        "data.sources.N.ignore; near-duplicates count once"
    )


def test_classes_that_share_their_groups_too_much_are_refused() -> None:
    # Each three of four groups are a class: whatever the splits, some class lacks one.
    members = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    label = np.repeat(np.arange(4), 3)
    with pytest.raises(DataError, match=r"near-duplicates tie classes together so that 'class-"):
        assign_splits(label, np.concatenate(members), CLASSES, SHARES, seed=0)
