"""Rows: the labelled readings of a split, in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Rows:
    """Labelled sensor readings, ordered by group and then by time.

    Shapes: N rows, F features.
    """

    x: NDArray[np.float32]  # [N, F]
    y: NDArray[np.int8]  # [N], 0 or 1
    group: NDArray[np.int64]  # [N], non-decreasing; rows of one group were recorded together
    row_id: NDArray[np.int64]  # [N], unique, stable across runs
    features: tuple[str, ...]  # F names
    true_probability: NDArray[np.float32] | None = None  # [N], where the generator knows it
    cluster: NDArray[np.int64] | None = None  # [N], if groups repeat each other: which are one

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Rows:
        """The rows at `index`, in that order."""
        known, cluster = self.true_probability, self.cluster
        return replace(
            self,
            x=self.x[index],
            y=self.y[index],
            group=self.group[index],
            row_id=self.row_id[index],
            true_probability=None if known is None else known[index],
            cluster=None if cluster is None else cluster[index],
        )

    @property
    def independent(self) -> NDArray[np.int64]:
        """The independent unit of each row, for splits and intervals. Shape [N]."""
        return self.group if self.cluster is None else self.cluster

    def history_length(self, window: int) -> NDArray[np.int64]:
        """How many readings of its group, itself included, each row can look back on: 1..window.
        Shape [N]."""
        starts = np.flatnonzero(np.r_[True, self.group[1:] != self.group[:-1]])
        lengths = np.diff(np.r_[starts, len(self)])
        position = np.arange(len(self)) - np.repeat(starts, lengths)
        return np.minimum(position + 1, window)

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.group))

    def digest(self) -> str:
        """sha256 of the sorted row ids: two splits with the same digest hold the same rows."""
        return hashlib.sha256(np.sort(self.row_id).astype("<i8").tobytes()).hexdigest()
