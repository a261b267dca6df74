"""Splits, stratified and grouped: whole groups go to one split, and each split has both classes.

Shapes: N rows, G groups, S = 3 splits in the order of `SPLITS`, A assignments of groups to splits.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.errors import DataError
from ray_jobs.sections import SplitShares

MAX_EXHAUSTIVE = 10  # groups; 3^10 assignments are tried in 20 ms
_TEST = SPLITS.index("test")


def assign_splits(
    y: NDArray[np.int8],
    group: NDArray[np.int64],
    shares: SplitShares,
    *,
    seed: int,
    grouped_by: str | None = None,
) -> NDArray[np.int8]:
    """The index in `SPLITS` of each row's split, shape [N].

    Up to ten groups are tried in every way. Of more, a few small ones make sure that each split
    has both classes; groups of the same make-up are then dealt out by the shares, and what remains
    goes, largest first, to where it brings rows and classes nearest to the shares.

    Args:
        y: labels 0 or 1, shape [N].
        group: any codes, shape [N]; equal codes stay together.
        seed: decides among equally good splits.
        grouped_by: what messages say of the groups.

    Raises:
        DataError: a class stands in fewer groups than there are splits.
    """
    codes, index = np.unique(group, return_inverse=True)
    counts = np.stack(
        [np.bincount(index, y == label, len(codes)) for label in (0, 1)], axis=1
    ).astype(np.int64)  # [G, 2] rows of each class
    for label in (0, 1):
        num_groups = int(np.sum(counts[:, label] > 0))
        if num_groups < len(SPLITS):
            raise DataError(
                f"class {label} of the label stands in {num_groups} independent "
                f"{'group' if num_groups == 1 else 'groups'} ({counts[:, label].sum()} rows; "
                f"grouped by {grouped_by or 'equal rows'}), but train, val and test need one each "
                "and a group is never cut. Add data, or name a finer data.group_column"
            )
    targets = np.array([getattr(shares, name) for name in SPLITS])
    rng = np.random.default_rng(seed)
    return _assign_groups(counts, targets, rng)[index]


def _assign_groups(
    counts: NDArray[np.int64], targets: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int8]:
    """The split of each group, shape [G]."""
    split = np.full(len(counts), -1, np.int8)
    core = _core(counts, rng)
    split[core] = _best_of_all(counts[core], counts.sum(axis=0), targets, rng)
    _deal(split, counts, targets, rng)
    _place_rest(split, counts, targets, rng)
    return split


def _core(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """All groups if they are few, else for each class the smallest three that have it."""
    if len(counts) <= MAX_EXHAUSTIVE:
        return np.arange(len(counts))
    shuffled = rng.permutation(len(counts))
    by_size = shuffled[np.argsort(counts[shuffled].sum(axis=1), kind="stable")]
    having = [by_size[counts[by_size, label] > 0][: len(SPLITS)] for label in (0, 1)]
    return np.unique(np.concatenate(having))


def _best_of_all(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    targets: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """The assignment nearest to the shares, of all that give each split both classes.

    Among equals test gets the most rows of its rarer class: a weak validation split costs skill, a
    weak test split leaves nothing to say.
    """
    num_splits = len(SPLITS)
    every = np.array(list(itertools.product(range(num_splits), repeat=len(counts))), np.int8)
    per_split = np.stack([(every == s) @ counts for s in range(num_splits)], axis=1)  # [A, S, 2]
    cost = _cost(per_split, totals, targets)
    cost[(per_split == 0).any(axis=(1, 2))] = np.inf
    equal = np.flatnonzero(cost <= cost.min() + 1e-9)
    rarer_in_test = per_split[equal, _TEST].min(axis=1)
    return every[rng.choice(equal[rarer_in_test == rarer_in_test.max()])]


def _deal(
    split: NDArray[np.int8],
    counts: NDArray[np.int64],
    targets: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Deal groups of the same make-up out by the shares, rounded down; fills `split` in place."""
    free = rng.permutation(np.flatnonzero(split < 0))
    order = free[np.lexsort(counts[free].T)]
    is_new = np.r_[True, np.any(np.diff(counts[order], axis=0) != 0, axis=1)][: len(order)]
    starts = np.flatnonzero(is_new)
    sizes = np.diff(np.r_[starts, len(order)])
    upto = np.cumsum(np.floor(sizes[:, None] * targets + 1e-9), axis=1)  # [kinds, S]
    kind = np.repeat(np.arange(len(starts)), sizes)
    position = np.arange(len(order)) - starts[kind]
    dealt = (position[:, None] >= upto[kind]).sum(axis=1)
    split[order] = np.where(dealt < len(SPLITS), dealt, -1)


def _place_rest(
    split: NDArray[np.int8],
    counts: NDArray[np.int64],
    targets: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Put each group that is left, largest first, where it brings splits nearest to the shares."""
    totals = counts.sum(axis=0)
    per_split = np.stack([counts[split == s].sum(axis=0) for s in range(len(SPLITS))])  # [S, 2]
    rest = rng.permutation(np.flatnonzero(split < 0))
    step = np.eye(len(SPLITS), dtype=np.int64)[:, :, None]
    for group in rest[np.argsort(-counts[rest].sum(axis=1), kind="stable")]:
        choice = int(np.argmin(_cost(per_split + step * counts[group], totals, targets)))
        split[group] = choice
        per_split[choice] += counts[group]


def _cost(
    per_split: NDArray[np.int64], totals: NDArray[np.int64], targets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distance of the splits' shares of all rows, and of each class, from the targets.

    Args:
        per_split: rows of each class in each split, shape [A, S, 2].
        totals: rows of each class, shape [2].
        targets: wanted shares, shape [S].
    """
    of_classes = per_split / totals - targets[:, None]
    of_rows = per_split.sum(axis=2) / totals.sum() - targets
    return (of_classes**2).sum(axis=(1, 2)) + (of_rows**2).sum(axis=1)
