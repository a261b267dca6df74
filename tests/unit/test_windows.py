from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data import windows
from ray_jobs.data.dataset import Rows

group_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def make_rows(lengths: list[int]) -> Rows:
    group = np.repeat(np.arange(len(lengths)), lengths)
    count = len(group)
    x = np.arange(count, dtype=np.float32)[:, None]
    return Rows(x, np.zeros(count, np.int8), group, np.arange(count), ("x",))


@given(group_lengths, st.integers(1, 20))
def test_a_row_is_scored_from_its_own_group_up_to_itself(lengths: list[int], window: int) -> None:
    rows = make_rows(lengths)
    scored = windows.ending_at_each_row(rows, window)
    ends = scored.start + scored.length - 1
    assert np.array_equal(ends, np.arange(len(rows)))
    assert np.array_equal(rows.group[scored.start], rows.group)
    position = np.concatenate([np.arange(length) for length in lengths])
    assert np.array_equal(scored.length, np.minimum(position + 1, window))


@given(group_lengths, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_tiles_cover_every_row_once_within_its_group(
    lengths: list[int], window: int, seed: int
) -> None:
    rows = make_rows(lengths)
    tiles = windows.tiling(rows, window, np.random.default_rng(seed))
    index, real = tiles.gather()
    assert np.array_equal(np.sort(index[real]), np.arange(len(rows)))
    assert tiles.length.max() <= window
    assert np.array_equal(rows.group[tiles.start], rows.group[tiles.start + tiles.length - 1])


@given(group_lengths, st.integers(1, 20), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_batches_hold_every_window_once_and_about_as_many_readings(
    lengths: list[int], window: int, num_readings: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = windows.tiling(make_rows(lengths), window, rng)
    found = list(windows.batches(tiles, num_readings, rng))
    starts = np.concatenate([batch.start for batch in found])
    assert sorted(starts) == sorted(tiles.start)
    assert all(batch.length.sum() < num_readings + window for batch in found)


def test_padding_stands_behind_the_newest_reading() -> None:
    index, real = windows.Windows(np.array([0, 5]), np.array([3, 1])).gather()
    assert index.tolist() == [[0, 1, 2], [5, 5, 5]]
    assert real.tolist() == [[True, True, True], [True, False, False]]
