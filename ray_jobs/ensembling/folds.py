"""Folds: the validation rows dealt into parts for cross-validation, clusters of rows kept whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_FOLDS = 5
_NUM_BLOCKS = 50
_FEW_GROUPS = 10


@dataclass(frozen=True)
class Folds:
    """Which fold holds each row out, and which rows it moves together."""

    fold: NDArray[np.int64]  # [N], 0..K-1
    clusters: NDArray[np.int64]  # [N], 0..C-1; none is in two folds
    note: str | None = None  # what a reader of their scores must know

    def __iter__(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """For each fold, masks [N] of the rows to fit on and of the rows held out."""
        for number in range(int(self.fold.max()) + 1):
            held = self.fold == number
            yield ~held, held


def make_folds(y: NDArray[np.int8], groups: NDArray[np.int64], seed: int) -> Folds | None:
    """Up to `NUM_FOLDS` folds of whole groups, with the positives spread evenly.

    Where groups cannot be folded (there is one, or one has all rows of a class), blocks of
    neighbouring rows take their place, since readings close in time are alike (Roberts et al.
    2017, Ecography 40); where those cannot either, single rows. None if a class has a single row.

    Args:
        y: labels, [N], of both classes.
        groups: numbers 0..G-1, [N]; rows of one group stand in time order.
        seed: of the order in which like groups are dealt.
    """
    num_rows = len(y)
    blocks = np.arange(num_rows) * min(_NUM_BLOCKS, num_rows) // num_rows
    cause = f"{groups.max() + 1} validation group(s) cannot be cross-validated whole"
    few = groups.max() + 1 < _FEW_GROUPS
    rough = f"there are {groups.max() + 1} validation groups: standard errors are rough"
    attempts = (
        (groups, rough if few else None),
        (blocks, f"{cause}: blocks of neighbouring rows were; errors may be larger than stated"),
        (np.arange(num_rows), f"{cause}: single rows were; errors may be larger than stated"),
    )
    for clusters, note in attempts:
        folds = Folds(_deal(y, clusters, seed), clusters, note)
        if all(len(np.unique(y[train])) == 2 for train, _ in folds):
            return folds
    return None


def _deal(y: NDArray[np.int8], clusters: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Deal clusters to folds, there and back, those with most positives first. Shape [N]."""
    sizes, num_positive = np.bincount(clusters), np.bincount(clusters, y)
    num_folds = min(NUM_FOLDS, len(sizes))
    shuffle = np.random.default_rng(seed).permutation(len(sizes))
    order = np.lexsort((shuffle, -sizes, -num_positive))
    fold = np.empty(len(sizes), np.int64)
    # Rolled, so that neighbours in the order never meet, be they the only two of a class.
    there_and_back = np.r_[np.arange(num_folds), np.roll(np.arange(num_folds)[::-1], -1)]
    fold[order] = np.resize(there_and_back, len(sizes))
    return fold[clusters]
