"""Splits of pictures: stratified by class, whole groups, each class in each split.

Shapes: N pictures, G groups, C classes, S = 3 splits in the order of `SPLITS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.errors import DataError
from ray_jobs.sections import SplitShares

MAX_ATTEMPTS = 100  # to find a place in each split for classes that share their groups


def assign_splits(
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    classes: Sequence[str],
    shares: SplitShares,
    *,
    seed: int,
) -> NDArray[np.int64]:
    """The index in `SPLITS` of each picture's split, shape [N].

    Each class first gets one of its smallest groups into each split; the other groups go, largest
    first, to the split that lacks most of their class. The order of the pictures does not matter.

    Args:
        label: indices into `classes`, shape [N].
        group: any codes, shape [N]; equal codes stay together.
        seed: decides among equally good splits.

    Raises:
        DataError: a class stands in fewer groups than there are splits.
    """
    codes, index = np.unique(group, return_inverse=True)
    counts = np.zeros((len(codes), len(classes)), np.int64)  # [G, C]
    np.add.at(counts, (index, label), 1)
    _refuse_few_groups(counts, classes)
    rng = np.random.default_rng(seed)
    split = _cover(counts, classes, rng)
    targets = np.array([getattr(shares, name) for name in SPLITS])
    _deal(split, counts, targets, rng)
    return split[index]


def _refuse_few_groups(counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    num_pictures, num_groups = counts.sum(axis=0), (counts > 0).sum(axis=0)
    few = np.flatnonzero((num_groups > 0) & (num_groups < len(SPLITS)))
    if not len(few):
        return
    listing = ", ".join(
        f"{classes[c]!r} ({num_pictures[c]} usable, {num_groups[c]} of them independent)"
        for c in few.tolist()
    )
    raise DataError(
        f"too few pictures for train, val and test to have one each: {listing}. Add pictures, map "
        "the class elsewhere in data.sources, or leave it out in data.sources.N.ignore; "
        "near-duplicates count once"
    )


def _cover(
    counts: NDArray[np.int64], classes: Sequence[str], rng: np.random.Generator
) -> NDArray[np.int64]:
    """A split of few groups, so that each class is in each, and -1 of the others; shape [G]."""
    num_groups = (counts > 0).sum(axis=0)
    num_classes_of = (counts > 0).sum(axis=1)
    for _ in range(MAX_ATTEMPTS):
        split = np.full(len(counts), -1, np.int64)
        # The rarest class chooses first, and groups of its own before those it shares.
        shuffled = rng.permutation(np.flatnonzero(num_groups))
        for c in shuffled[np.argsort(num_groups[shuffled], kind="stable")]:
            having = rng.permutation(np.flatnonzero(counts[:, c]))
            having = having[np.lexsort((counts[having].sum(axis=1), num_classes_of[having]))]
            lacking = np.setdiff1d(np.arange(len(SPLITS)), split[having])
            free = having[split[having] < 0][: len(lacking)]
            split[free] = rng.permutation(lacking)[: len(free)]
        covered = [np.isin(range(len(SPLITS)), split[counts[:, c] > 0]).all() for c in shuffled]
        if all(covered):
            return split
    missed = [repr(classes[c]) for c, whole in zip(shuffled, covered, strict=True) if not whole]
    raise DataError(
        f"near-duplicates tie classes together so that {', '.join(missed)} cannot stand in train, "
        "val and test alike. Lower data.near_duplicate_bits, or add pictures"
    )


def _deal(
    split: NDArray[np.int64],
    counts: NDArray[np.int64],
    targets: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Put each group that is left where most of its class is lacking; fills `split` in place."""
    wanted = counts.sum(axis=0)[:, None] * targets  # [C, S]
    for s in range(len(SPLITS)):
        wanted[:, s] -= counts[split == s].sum(axis=0)
    main_class, sizes = counts.argmax(axis=1), counts.sum(axis=1)
    rest = rng.permutation(np.flatnonzero(split < 0))
    for group in rest[np.argsort(-sizes[rest], kind="stable")]:
        split[group] = np.argmax(wanted[main_class[group]])
        wanted[:, split[group]] -= counts[group]
