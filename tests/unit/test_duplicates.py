from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ray_jobs.data import duplicates
from ray_jobs.data.dataset import Rows
from ray_jobs.data.duplicates import count_across_splits, find_repeats, row_keys


def rows_of(x: NDArray[np.float32], group: NDArray[np.int64] | None = None) -> Rows:
    index = np.arange(len(x))
    return Rows(
        x=x,
        y=(index % 2).astype(np.int8),
        group=index if group is None else group,
        row_id=index,
        features=tuple(f"f{j}" for j in range(x.shape[1])),
    )


def sessions(num_sessions: int, num_rows: int, seed: int = 0) -> tuple[NDArray[np.float32], Rows]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_sessions * num_rows, 6)).astype(np.float32)
    return x, rows_of(x, np.repeat(np.arange(num_sessions), num_rows))


@given(arrays(np.float32, (30, 3), elements=st.sampled_from([0.0, -0.0, 1.0, 2.5, np.nan])))
def test_keys_are_equal_where_rows_are(x: NDArray[np.float32]) -> None:
    x[::2][np.isnan(x[::2])] = -np.float32(np.nan)
    same = row_keys(x)[:, None] == row_keys(x)[None, :]
    expected = [[np.array_equal(a, b, equal_nan=True) for b in x] for a in x]
    assert same.tolist() == expected


def test_columns_do_not_stand_for_each_other() -> None:
    keys = row_keys(np.array([[1, 2], [2, 1], [3, 3], [4, 4]], np.float32))
    assert len(np.unique(keys)) == 4


def test_rows_that_stand_alone_are_grouped_with_their_copies() -> None:
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    x[[10, 60]] = x[3]
    x[99] = x[98]
    repeats = find_repeats(rows_of(x), None)
    assert repeats.report.num_exact == 3
    assert repeats.report.num_near == 0
    assert len(np.unique(repeats.independent)) == 97
    assert len(np.unique(repeats.independent[[3, 10, 60]])) == 1


@pytest.mark.parametrize("changed", [[2], [1, 4]])
def test_rows_that_repeat_but_for_columns_are_grouped(changed: list[int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    x[400:] = x[:100]
    x[400:, changed] = rng.normal(size=(100, len(changed)))
    repeats = find_repeats(rows_of(x), None)
    assert repeats.report.num_near == 100
    assert repeats.report.differing_columns == [f"f{j}" for j in changed]
    assert np.array_equal(repeats.independent[400:], repeats.independent[:100])


def test_rows_of_few_values_are_not_near_duplicates() -> None:
    x = np.random.default_rng(0).integers(0, 3, size=(2000, 6)).astype(np.float32)
    repeats = find_repeats(rows_of(x), None)
    assert repeats.report.num_near == 0
    assert repeats.report.num_exact == 2000 - len(np.unique(x, axis=0))


@pytest.mark.parametrize("changed", [[], [0], [1, 4]])
def test_groups_that_repeat_each_other_are_merged(changed: list[int]) -> None:
    x, rows = sessions(6, 200)
    x[1000:1140] = x[200:340]  # 70 % of session 5 repeats session 1
    x[1000:1140][:, changed] += 1
    repeats = find_repeats(rows, lambda code: f"session {code + 1}")
    assert repeats.report.merged_groups == [["session 2", "session 6"]]
    assert repeats.report.differing_columns == [f"f{j}" for j in changed]
    assert repeats.report.num_near == (140 if changed else 0)
    assert repeats.report.num_exact == (0 if changed else 140)
    assert len(np.unique(repeats.independent)) == 5
    assert np.unique(repeats.independent[rows.group == 5]).tolist() == [1]


def test_merging_goes_on_from_group_to_group() -> None:
    x, rows = sessions(5, 100)
    x[100:200, 1:] = x[:100, 1:]
    x[300:400] = x[100:200]
    x[300:400, 2] += 1
    repeats = find_repeats(rows, str)
    assert repeats.report.differing_columns == ["f0", "f2"]
    assert repeats.report.merged_groups == [["0", "1", "3"]]


def test_groups_that_share_a_third_are_not_merged() -> None:
    x, rows = sessions(4, 100)
    x[100:133] = x[:33]
    repeats = find_repeats(rows, str)
    assert repeats.report.merged_groups == []
    assert repeats.report.num_exact == 33
    split = np.where(rows.group == 1, 2, 0).astype(np.int8)
    assert count_across_splits(x, split) == 33


def test_sensors_at_rest_do_not_merge_groups() -> None:
    """Every session stands still for most of the time, at the same values."""
    x, rows = sessions(10, 200)
    at_rest = np.tile(np.arange(200) < 150, 10)
    x[at_rest] = [20, 0, 400, 0, 0, 1]
    assert find_repeats(rows, str).report.merged_groups == []


def test_groups_of_few_values_are_not_merged() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, size=(4000, 6)).astype(np.float32)
    rows = rows_of(x, np.repeat(np.arange(20), 200))
    assert find_repeats(rows, str).report.merged_groups == []


def test_a_sample_of_a_large_table_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows = sessions(20, 500)
    x[9500:, 1:] = x[500:1000, 1:]
    whole = find_repeats(rows, str)
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 1000)
    sampled = find_repeats(rows, str)
    assert whole.report == sampled.report
    assert sampled.report.merged_groups == [["1", "19"]]
    assert whole.notes == ()
    assert sampled.notes == (
        "near duplicates: about 1,000 of 10,000 rows were compared for each choice of columns",
    )
