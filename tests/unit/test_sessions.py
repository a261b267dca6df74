from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_jobs.data.sessions import (
    NUM_BLOCKS,
    blocks,
    clock,
    find_clock,
    is_autocorrelated,
    sessions_of,
)


def counter(*lengths: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(length) for length in lengths])


@given(st.lists(st.integers(11, 200), min_size=1, max_size=10), st.integers(-5, 5))
def test_a_counter_is_cut_where_it_starts_again(lengths: list[int], start: int) -> None:
    found = find_clock(counter(*lengths) + start)
    assert found is not None
    assert found.reason == "counts the rows (steps of 1)"
    sessions = sessions_of({"n": found})
    if len(lengths) == 1:
        assert sessions is None
    else:
        assert sessions is not None
        assert sessions[1].tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()


@given(st.integers(0, 2**16), st.sampled_from(["normal", "walk", "integers", "bits"]))
def test_a_sensor_is_no_clock(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=500)
    values: dict[str, NDArray[Any]] = {
        "normal": noise,
        "walk": np.cumsum(noise),
        "integers": rng.integers(0, 50, 500),
        "bits": rng.integers(0, 2, 500),
    }
    assert find_clock(values[kind]) is None


def test_times_run_with_time_up_or_down_and_may_stand_still() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.3, 1000))
    forms: list[NDArray[Any]] = [times, times[::-1], np.repeat(times, 5), times.astype(np.int64)]
    for values in forms:
        found = find_clock(values)
        assert found is not None
        assert found.reason == "runs with time (it hardly ever turns)"
        assert sessions_of({"t": found}) is None


def test_a_pause_ends_a_session_and_a_lost_reading_does_not() -> None:
    times = 2 * counter(1000).astype(np.float64)
    times[300:] += 20
    times[700:] += 3600
    found = find_clock(times)
    assert found is not None
    assert np.flatnonzero(found.is_start).tolist() == [0, 700]
    assert found.num_resets == 0


def test_within_groups_steps_between_groups_do_not_count() -> None:
    values = np.tile(np.arange(5.0) ** 2, 40)
    is_start = np.tile([True, False, False, False, False], 40)
    assert find_clock(values) is None
    assert find_clock(values, is_start) is not None


def test_too_few_steps_tell_nothing() -> None:
    assert find_clock(np.arange(10)) is None
    assert find_clock(np.array([0] * 500 + [1] * 500)) is None


def test_the_column_that_starts_again_most_often_tells_the_sessions() -> None:
    times = np.concatenate([counter(100), 50_000 + counter(100), 90_000 + counter(100)])
    clocks = {"time": clock(times, ""), "n": clock(counter(100, 100, 100), "")}
    found = sessions_of(clocks)
    assert found is not None
    assert found[0] == "n"
    found = sessions_of({"time": clocks["time"]})
    assert found is not None
    assert np.bincount(found[1]).tolist() == [100, 100, 100]


@given(st.integers(1, 1000))
def test_blocks_are_consecutive_and_even(num_rows: int) -> None:
    sizes = np.bincount(blocks(num_rows))
    assert np.all(np.diff(blocks(num_rows)) >= 0)
    assert len(sizes) == min(NUM_BLOCKS, num_rows)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("share_missing", [0, 0.2])
def test_a_recording_resembles_itself_and_shuffled_rows_do_not(share_missing: float) -> None:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(2000, 4)), axis=0).astype(np.float32)
    x[:, 3] = 1
    x[rng.random(x.shape) < share_missing] = np.nan
    assert is_autocorrelated(x)
    assert not is_autocorrelated(rng.permutation(x))
