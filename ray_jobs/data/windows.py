"""Windows over the histories of rows, as index arrays that a sequence model gathers with.

A window starts at its oldest reading and is padded behind its newest, so a causal model never sees
the padding.

Shapes: N rows, B windows, T readings a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import Rows


@dataclass(frozen=True)
class Windows:
    """Runs of consecutive rows of one group."""

    start: NDArray[np.int64]  # [B] first row
    length: NDArray[np.int64]  # [B] in rows

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: NDArray[np.int64] | slice) -> Windows:
        return Windows(self.start[index], self.length[index])

    def gather(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Row indices [B, T] and which of them are real [B, T]; padding repeats the last row."""
        steps = np.arange(int(self.length.max()))
        real = steps < self.length[:, None]
        index = self.start[:, None] + np.minimum(steps, self.length[:, None] - 1)
        return index, real


def ending_at_each_row(rows: Rows, window: int) -> Windows:
    """One window a row: the row and up to `window - 1` readings before it. This is how rows are
    scored."""
    length = rows.history_length(window)
    return Windows(np.arange(len(rows)) - length + 1, length)


def tiling(rows: Rows, window: int, rng: np.random.Generator) -> Windows:
    """Windows that cover every row once, cut at a random phase in each group.

    A causal model trained with a loss at every reading learns from histories of every length up to
    `window` in one pass, at 1/window of the cost of one window a row.
    """
    position = rows.history_length(len(rows)) - 1
    is_first = position == 0
    phase = rng.integers(0, window, size=int(is_first.sum()))
    shifted = position + np.repeat(phase, np.diff(np.r_[np.flatnonzero(is_first), len(rows)]))
    start = np.flatnonzero(is_first | (shifted % window == 0))
    return Windows(start, np.diff(np.r_[start, len(rows)]))


def batches(
    windows: Windows, num_readings: int, rng: np.random.Generator | None = None
) -> Iterator[Windows]:
    """Batches of about `num_readings` rows each, shuffled if `rng` is given.

    Counting readings, not windows, keeps the steps equally large when histories are short (in the
    limit, when every row stands alone).
    """
    order = np.arange(len(windows)) if rng is None else rng.permutation(len(windows))
    readings = np.cumsum(windows.length[order])
    batch = (readings - 1) // num_readings
    cuts = np.flatnonzero(np.diff(batch)) + 1
    for part in np.split(order, cuts):
        yield windows.take(part)
