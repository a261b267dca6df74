from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.data.readings import Readings, read_readings
from ray_jobs.data.shards import Roles, write_shard
from ray_jobs.data.spec import DataSpec
from ray_jobs.data.table import find_files
from ray_jobs.errors import DataError
from ray_jobs.storage import Storage


def frame(num_rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(num_rows, 2)).round(3)
    return pd.DataFrame(
        {"heat": values[:, 0], "co2": values[:, 1], "fire": np.arange(num_rows) % 2}
    )


def read(path: Path, **spec: Any) -> Readings:
    data = DataSpec(path=str(path), **{"label_column": "fire", **spec})
    return read_readings(find_files(str(path)), data)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def test_every_numeric_column_is_a_feature(csv: Path) -> None:
    table = frame()
    table["wet"] = np.arange(60) % 3 == 0
    table["room"] = "kitchen"
    table["made"] = "x1"
    table["same"] = 7.5
    table["gone"] = np.nan
    table["when"] = pd.date_range("2024-01-01", periods=60, freq="min")
    table.to_csv(csv)
    readings = read(csv)
    assert readings.rows.features == ("heat", "co2", "wet")
    assert readings.excluded == {
        "unnamed_0": "counts the rows (steps of 1)",
        "room": "text ('kitchen')",
        "made": "text ('x1')",
        "same": "constant",
        "gone": "empty",
        "when": "runs with time (it hardly ever turns)",
    }
    assert readings.rows.x[:, 0] == pytest.approx(table.heat.to_numpy(np.float32))
    assert readings.rows.y.tolist() == table.fire.tolist()
    assert readings.rows.row_id.tolist() == list(range(60))
    assert readings.grouped_by is None
    assert "taken as independent" in readings.notes[0]


def test_named_features_are_taken_as_they_are(csv: Path) -> None:
    table = frame()
    table["n"] = np.arange(60)
    table.to_csv(csv, index=False)
    assert read(csv, feature_columns=["n", "heat"]).rows.features == ("n", "heat")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"label_column": None},
            "a.csv: which column is the label? Set data.label_column to one of heat, co2, fire; "
            "with two values: 'fire'",
        ),
        (
            {"label_column": "fier"},
            "a.csv: no column 'fier', which data.label_column names; there is heat, co2, fire (did "
            "you mean 'fire'?)",
        ),
        (
            {"feature_columns": ["heat", "co3"]},
            "a.csv: no column 'co3', which data.feature_columns names; there is heat, co2, fire "
            "(did you mean 'co2'?)",
        ),
        (
            {"group_column": "room"},
            "a.csv: no column 'room', which data.group_column names; there is heat, co2, fire",
        ),
        (
            {"feature_columns": ["heat", "fire"]},
            "data.feature_columns: 'fire' is the label. Leave it out",
        ),
        (
            {"feature_columns": ["heat", "heat"]},
            "data.feature_columns: 'heat' is named twice. Leave it out",
        ),
        (
            {"feature_columns": []},
            "data.feature_columns is empty. Name columns, or leave the key out",
        ),
        (
            {"id_column": "fire"},
            "a.csv, line 4: the id 0 of column 'fire' stands in a.csv, line 2 already. Make ids "
            "unique, or leave data.id_column out",
        ),
        (
            {"label_column": "heat"},
            "a.csv: the label column 'heat' must hold 0 and 1 (or false and true), but holds "
            "0.126, 0.64, -0.536, 1.304, -0.704, .... Recode it, or set data.label_column to "
            "another column",
        ),
    ],
)
def test_a_spec_that_does_not_fit_the_file(csv: Path, spec: dict[str, Any], message: str) -> None:
    frame().to_csv(csv, index=False)
    with pytest.raises(DataError) as raised:
        read(csv, **spec)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        (
            "heat",
            7,
            "hot",
            "a.csv, line 9: column 'heat' holds numbers, but 'hot' there. Correct the cell (leave "
            "it empty if the value is unknown), or name the columns to learn from in "
            "data.feature_columns",
        ),
        (
            "heat",
            7,
            None,
            "a.csv, line 9: column 'heat' is empty; such cells (empty, NaN or infinite) in all: "
            "1, in 1 of 2 columns. Mend them, or set data.nonfinite to drop (leave such rows out) "
            "or impute (fill in train's median)",
        ),
        ("co2", 3, "-inf", "a.csv, line 5: column 'co2' is -inf; such cells"),
        ("co2", 3, "1e300", "a.csv, line 5: column 'co2' is 1e+300; such cells"),
        (
            "fire",
            3,
            None,
            "a.csv, line 5: the label column 'fire' is empty there. Fill it in, or delete such "
            "rows",
        ),
        (
            "fire",
            3,
            2,
            "a.csv: the label column 'fire' must hold 0 and 1 (or false and true), but holds 0, "
            "1, 2. Recode it, or set data.label_column to another column",
        ),
        ("fire", 3, "yes", "a.csv: the label column 'fire' must hold 0 and 1 (or false and true)"),
    ],
)
def test_a_bad_cell_is_named(csv: Path, column: str, row: int, value: Any, message: str) -> None:
    table = frame().astype(object)
    table.loc[row, column] = value
    table.to_csv(csv, index=False)
    with pytest.raises(DataError) as raised:
        read(csv)
    assert str(raised.value).startswith(message)


def test_a_missing_group_or_time_is_refused(csv: Path) -> None:
    table = frame()
    table["room"] = ["a", None] * 30
    table.to_csv(csv, index=False)
    with pytest.raises(DataError) as raised:
        read(csv, group_column="room")
    assert str(raised.value) == (
        "a.csv, line 3: the group column 'room' is empty there and in 29 other rows. Fill it in, "
        "or delete such rows"
    )


def test_a_time_in_words_is_refused(csv: Path) -> None:
    table = frame()
    table["when"] = "3rd of May"
    table.to_csv(csv, index=False)
    with pytest.raises(
        DataError, match=r"a.csv, line 2: the time column 'when' holds '3rd of May'"
    ):
        read(csv, time_column="when")


@pytest.mark.parametrize("values", [[0.0, 1.0], [False, True], ["true", "FALSE"]])
def test_labels_that_mean_0_and_1(csv: Path, values: list[Any]) -> None:
    table = frame()
    table["fire"] = values * 30
    table.to_csv(csv, index=False)
    y = read(csv).rows.y
    assert y.dtype == np.int8
    assert sorted(np.bincount(y)) == [30, 30]


def test_one_class_alone_and_few_rows_are_refused(csv: Path) -> None:
    table = frame()
    table["fire"] = 1
    table.to_csv(csv, index=False)
    with pytest.raises(DataError, match=r"a.csv: the label column 'fire' holds only 1: one class"):
        read(csv)
    frame(19).to_csv(csv, index=False)
    with pytest.raises(DataError, match=r"a.csv: 19 rows; at least 20 are needed"):
        read(csv)


def test_a_table_without_numbers_is_refused(csv: Path) -> None:
    table = frame()[["fire"]]
    table["room"] = "a"
    table.to_csv(csv, index=False)
    with pytest.raises(DataError, match=r"no column to learn from \(room: text \('a'\)\)"):
        read(csv)


def test_rows_with_holes_are_dropped_or_kept_to_be_filled(csv: Path) -> None:
    table = frame()
    table.loc[[3, 9], "heat"] = np.nan
    table.loc[9, "co2"] = np.inf
    table.to_csv(csv, index=False)
    dropped = read(csv, nonfinite="drop")
    assert dropped.num_dropped == 2
    assert dropped.rows.row_id.tolist() == [i for i in range(60) if i not in (3, 9)]
    assert np.isfinite(dropped.rows.x).all()
    kept = read(csv, nonfinite="impute")
    assert np.argwhere(np.isnan(kept.rows.x)).tolist() == [[3, 0], [9, 0], [9, 1]]


def test_dropping_nearly_everything_is_refused(csv: Path) -> None:
    table = frame()
    table.loc[5:, "co2"] = np.nan
    table.to_csv(csv, index=False)
    with pytest.raises(DataError) as raised:
        read(csv, nonfinite="drop")
    assert str(raised.value) == (
        "a.csv: data.nonfinite=drop leaves 5 of 60 rows and 2 of 2 classes; column 'co2' is "
        "empty, NaN or infinite in 55. Leave it out of data.feature_columns, or set "
        "data.nonfinite to impute"
    )


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    table = pa.table({"x": [f" {i % 7}.5" for i in range(40)], "fire": [i % 2 for i in range(40)]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").rows.x[:2, 0].tolist() == [0.5, 1.5]


def test_rows_are_ordered_by_group_and_then_by_time(csv: Path) -> None:
    table = frame()
    table["room"] = ["b", "a", "a"] * 20
    table["when"] = np.random.default_rng(1).permutation(60)
    table["name"] = [f"row {i}" for i in range(60)]
    table.to_csv(csv, index=False)
    readings = read(csv, group_column="room", time_column="when", id_column="name")
    expected = table.sort_values(["room", "when"], key=lambda c: c.replace({"b": "0", "a": "1"}))
    assert readings.rows.x[:, 0] == pytest.approx(expected.heat.to_numpy(np.float32))
    assert readings.rows.group.tolist() == [0] * 20 + [1] * 40
    assert readings.grouped_by == "column 'room'"
    assert readings.name_group is not None
    assert readings.name_group(1) == "a"
    again = read(csv, group_column="room", id_column="name").rows
    by_id = dict(zip(again.row_id, again.x[:, 0], strict=True))
    assert [by_id[i] for i in readings.rows.row_id] == readings.rows.x[:, 0].tolist()


def test_a_counter_that_starts_again_tells_the_sessions(csv: Path) -> None:
    table = frame()
    table["n"] = list(range(25)) + list(range(20)) + list(range(15))
    table.to_csv(csv, index=False)
    readings = read(csv)
    assert readings.grouped_by == "sessions of 'n'"
    assert np.bincount(readings.rows.group).tolist() == [25, 20, 15]
    assert readings.excluded == {"n": "counts the rows (steps of 1)"}
    assert readings.name_group is not None
    assert readings.name_group(0) == "session 1"


def test_rows_dropped_are_dropped_from_the_groups_too(csv: Path) -> None:
    table = frame()
    table["room"] = ["b", "a", "a"] * 20
    table.loc[[0, 4], "heat"] = np.nan
    table.to_csv(csv, index=False)
    rows = read(csv, group_column="room", nonfinite="drop").rows
    assert np.array_equal(rows.group, rows.row_id % 3 > 0)
    assert len(rows) == 58


def test_sessions_outlive_the_rows_dropped(csv: Path) -> None:
    table = frame()
    table["n"] = list(range(30)) * 2
    table.loc[29:31, "heat"] = np.nan
    table.to_csv(csv, index=False)
    readings = read(csv, nonfinite="drop")
    assert np.bincount(readings.rows.group).tolist() == [29, 28]


def test_a_time_column_tells_the_sessions_even_of_shuffled_rows(csv: Path) -> None:
    table = frame(200)
    when = pd.date_range("2024-01-01", periods=200, freq="s").to_series()
    when.iloc[120:] += pd.Timedelta(days=1)
    table["when"] = when.to_numpy()
    table.sample(frac=1, random_state=0).to_csv(csv, index=False)
    readings = read(csv, time_column="when")
    assert readings.grouped_by == "sessions of 'when'"
    assert np.bincount(readings.rows.group).tolist() == [120, 80]
    assert readings.rows.x[:, 0] == pytest.approx(table.heat.to_numpy(np.float32))


def test_files_are_recordings(tmp_path: Path) -> None:
    for name in "cab":
        frame(20).sample(frac=1, random_state=ord(name)).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    readings = read(tmp_path)
    assert readings.grouped_by == "files"
    assert readings.name_group is not None
    assert [readings.name_group(code) for code in range(3)] == ["a.csv", "b.csv", "c.csv"]


def test_one_long_recording_is_cut_into_blocks(csv: Path) -> None:
    table = frame(500)
    table[["heat", "co2"]] = table[["heat", "co2"]].cumsum()
    table.to_csv(csv, index=False)
    readings = read(csv)
    assert readings.grouped_by == "blocks of about 10 consecutive rows"
    assert np.bincount(readings.rows.group).tolist() == [10] * 50
    assert "the score is for this recording, not for a new one" in readings.warnings[0]


@pytest.mark.parametrize("group", ["episode", None])
def test_own_shards_are_read_with_no_option_given(tmp_path: Path, group: str | None) -> None:
    rng = np.random.default_rng(0)
    roles = Roles("fire", ("a", "b"), group=group, id="n", true_probability="p")
    storage = Storage(tmp_path)
    for index in range(4):
        columns = {
            "n": np.arange(50) + 50 * index,
            "episode": np.full(50, index),
            "a": np.arange(50).astype(np.float32),
            "b": rng.normal(size=50).astype(np.float32),
            "p": np.full(50, 0.25, np.float32),
            "fire": np.arange(50).astype(np.int8) % 2,
        }
        write_shard(storage, f"d/rows-{index:05d}.parquet", columns, roles)
    readings = read(tmp_path / "d", label_column=None)
    assert readings.label == "fire"
    assert readings.rows.features == ("a", "b")
    assert readings.rows.num_groups == (4 if group else 200)
    assert readings.grouped_by == ("column 'episode'" if group else None)
    assert readings.rows.true_probability is not None
    assert set(readings.rows.true_probability) == {0.25}
