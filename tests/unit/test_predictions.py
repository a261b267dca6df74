"""Predictions on disk: back as written, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_run import MEMBERS, make_predictions

from ray_jobs.errors import DataError
from ray_jobs.predictions import Predictions
from ray_jobs.storage import Storage


def test_predictions_come_back_as_written(tmp_path: Any) -> None:
    storage, written = Storage(tmp_path), make_predictions(50)
    written.write(storage, "artifacts/test.parquet")
    read = Predictions.read(storage, "artifacts/test.parquet")
    table = pq.read_table(tmp_path / "artifacts/test.parquet")
    names = ["row_id", "label", "group", "ensemble", *(f"member.{name}" for name in MEMBERS)]
    assert table.column_names == names
    for name in ("row_id", "y", "group", "ensemble"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert list(read.members) == list(MEMBERS)
    for name in MEMBERS:
        np.testing.assert_array_equal(read.members[name], written.members[name])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda t: t.drop_columns(["label"]), "column 'label' should be int8, but is missing"),
        (
            lambda t: t.set_column(3, "ensemble", pa.array(["x"] * len(t))),
            "column 'ensemble' should be double, but is string",
        ),
        (
            lambda t: t.set_column(4, "member.random_forest", pa.array([float("nan")] * len(t))),
            "the probabilities of 'random_forest' must be between 0 and 1",
        ),
        (
            lambda t: t.set_column(1, "label", pa.array([2] * len(t), pa.int8())),
            "column 'label' must hold 0 and 1 only",
        ),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Any, damage: Any, reason: str) -> None:
    storage, path = Storage(tmp_path), tmp_path / "p.parquet"
    make_predictions(50).write(storage, "p.parquet")
    pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(DataError) as error:
        Predictions.read(storage, "p.parquet")
    assert str(error.value) == (
        f"{path}: these are not predictions ({reason}). Delete the file and evaluate the run again."
    )


def test_file_that_is_not_parquet_is_refused(tmp_path: Any) -> None:
    (tmp_path / "p.parquet").write_bytes(b"half a file")
    with pytest.raises(DataError, match="these are not predictions"):
        Predictions.read(Storage(tmp_path), "p.parquet")


def test_predictions_of_different_length_are_refused() -> None:
    part = make_predictions(50)
    with pytest.raises(ValueError, match="differ in length"):
        Predictions(part.row_id[:-1], part.y, part.group, part.ensemble, part.members)
