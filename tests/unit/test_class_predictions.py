"""Predictions of many classes on disk: back as written, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.errors import DataError
from ray_jobs.storage import Storage

CLASSES = ("paper", "glass, green", "p.été")


def make_predictions(**changed: Any) -> ClassPredictions:
    rng = np.random.default_rng(0)
    columns = {
        "row_id": np.arange(20) + 2**62,
        "y": np.arange(20) % 3,
        "group": np.arange(20) // 4,
        "p": rng.dirichlet(np.ones(3), 20),
        "classes": CLASSES,
    }
    return ClassPredictions(**{**columns, **changed})


@pytest.mark.parametrize("num_rows", [20, 0])
def test_predictions_come_back_as_written(tmp_path: Any, num_rows: int) -> None:
    whole = make_predictions()
    written = ClassPredictions(
        whole.row_id[:num_rows],
        whole.y[:num_rows],
        whole.group[:num_rows],
        np.asfortranarray(whole.p[:num_rows]),
        CLASSES,
    )
    storage = Storage(tmp_path)
    written.write(storage, "predictions/test.parquet")
    read = ClassPredictions.read(storage, "predictions/test.parquet")
    assert len(read) == num_rows
    assert read.classes == CLASSES
    for name in ("row_id", "y", "group", "p"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.p.dtype, read.y.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"y": np.zeros(19, int)},
            "the columns of predictions differ in length: "
            "{'row_id': 20, 'label': 19, 'group': 20, 'p': 20}",
        ),
        ({"classes": ("a", "b")}, "p must be [N, 2] as classes, but is (20, 3)"),
        ({"classes": ("a", "b", "a")}, "the class 'a' is named twice"),
        ({"y": np.full(20, 3)}, "y must be between 0 and 2, as p has 3 classes"),
        ({"y": np.full(20, -1)}, "y must be between 0 and 2, as p has 3 classes"),
        ({"y": np.zeros(20)}, "y must hold whole numbers, but is float64"),
        (
            {"p": np.full((20, 3), 0.3334)},
            "every row of p must sum to 1, but row 0 sums to 1.0002",
        ),
        ({"p": np.full((20, 3), np.nan)}, "p must be finite and between 0 and 1"),
        ({"p": np.tile([-0.5, 0.5, 1.0], (20, 1))}, "p must be finite and between 0 and 1"),
        ({"p": np.ones((20, 1)), "classes": ("a",)}, "p must have two classes or more, but has 1"),
    ],
)
def test_what_is_no_prediction_is_refused(changed: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its words are asserted below
        make_predictions(**changed)
    assert str(error.value) == message


def test_sums_within_the_tolerance_pass() -> None:
    make_predictions(p=np.full((20, 3), 0.33335))


def replace_first(table: pa.Table, index: int, name: str, value: Any) -> pa.Table:
    values = [value, *table[name].to_pylist()[1:]]
    return table.set_column(index, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda t: t.drop_columns(["label"]), "column 'label' should be int64, but is missing"),
        (
            lambda t: t.set_column(3, "p", t["row_id"]),
            "column 'p' should be fixed_size_list<element: double>[3], but is int64",
        ),
        (lambda t: replace_first(t, 1, "label", None), "column 'label' has rows without a value"),
        (
            lambda t: replace_first(t, 3, "p", [None, 0.5, 0.5]),
            "p must be finite and between 0 and 1",
        ),
        (
            lambda t: replace_first(t, 3, "p", None),
            "Expected all lists to be of size=3 but index 1 had size=0",
        ),
        (
            lambda t: t.set_column(1, "label", pa.array([7] * len(t), pa.int64())),
            "y must be between 0 and 2, as p has 3 classes",
        ),
        (
            lambda t: t.replace_schema_metadata({}),
            "the schema does not name the classes",
        ),
        (
            lambda t: t.replace_schema_metadata({"classes": '{"a": 1}'}),
            "the schema does not name the classes",
        ),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Any, damage: Any, reason: str) -> None:
    storage, path = Storage(tmp_path), tmp_path / "p.parquet"
    make_predictions().write(storage, "p.parquet")
    pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(DataError) as error:
        ClassPredictions.read(storage, "p.parquet")
    message = str(error.value).replace("<item:", "<element:")
    assert message == (
        f"{path}: these are not predictions of classes ({reason}). "
        "Delete the file and evaluate the run again."
    )


@pytest.mark.parametrize("content", [b"", b"PAR1 torn", b"{}"])
def test_file_that_is_not_parquet_is_refused(tmp_path: Any, content: bytes) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(DataError, match="these are not predictions of classes"):
        ClassPredictions.read(Storage(tmp_path), "p.parquet")
