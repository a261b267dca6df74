"""Predictions for whole files, by the scorer that also answers requests; a few rows in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.data.images.sources import EXTENSIONS
from ray_jobs.data.table import DataFile
from ray_jobs.models.bundle_files import INDEX
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.model import Model
from ray_jobs.serving.rows import TABLES, Faults, Row, read_batches, unreadable
from ray_jobs.serving.scorer import JSON
from ray_jobs.serving.tables import Columns

_PICTURES_AT_ONCE = 16
_PICTURE = "image/jpeg"  # what it is is read off its bytes

Prediction = dict[str, Any]


def endings(workload: str) -> tuple[str, ...]:
    """Of the files that a workload's model takes."""
    return tuple(sorted(EXTENSIONS)) if workload == "waste" else TABLES


@dataclass(frozen=True)
class Scored:
    """Some rows of a file, or a picture, and the model's answer."""

    inputs: Any
    answer: Any
    places: list[dict[str, Any]]  # of each prediction: its `file` and, of a row, its `row`


def predict_files(
    model: Model, folder: Path, files: Sequence[DataFile], faults: Faults
) -> Iterator[list[Prediction]]:
    """Predictions, some at once, in the order of the files and their rows. Each has its `file`
    and, unless it is of a picture, its `row`, counted from 1 without the header.

    Args and errors are those of `score_files`.
    """
    for scored in score_files(model, folder, files, faults):
        said = json.loads(model.scorer.render(scored.answer, JSON, model.version))["predictions"]
        yield [{**one, **place} for one, place in zip(said, scored.places, strict=True)]


def score_files(
    model: Model, folder: Path, files: Sequence[DataFile], faults: Faults
) -> Iterator[Scored]:
    """Answers, for some rows at once, in the order of the files and their rows.

    A row of fire stands alone; each file of gcode is one run, of which some last rows are the first
    of the next inputs, too.

    Args:
        folder: of the model's bundle.

    Raises:
        DataError: a file cannot be read; or it or a row of it is nothing that the model takes,
            unless `faults` skips it.
    """
    if model.workload == "waste":
        yield from _of_pictures(model, files, faults)
        return
    index = json.loads((folder / INDEX).read_bytes())
    if model.workload == "gcode":
        frame = index["frame"]
        columns, window = Columns(tuple(frame["features"]), may_be_missing=True), frame["window"]
    else:
        columns, window = Columns(tuple(index["features"])), 1
    for file in files:
        yield from _of_rows(model, file, columns, window, faults)


def _of_rows(
    model: Model, file: DataFile, columns: Columns, window: int, faults: Faults
) -> Iterator[Scored]:
    """Of each row that ends `window` of them."""
    carried: list[Row] = []
    num_rows, num_faults = 0, faults.num
    for batch in read_batches(file, columns, faults):
        rows = carried + batch
        try:
            inputs = _parse(model, rows, columns, window)
        except BadInput:
            rows = carried + _good_rows(model, file.name, batch, columns, window, faults)
            inputs = _parse(model, rows, columns, window) if rows else None
        num_rows += len(rows) - len(carried)
        if len(rows) >= window:
            places = [{"file": file.name, "row": row.number} for row in rows[window - 1 :]]
            yield Scored(inputs, model.scorer.score([inputs])[0], places)
        carried = rows[max(0, len(rows) - window + 1) :]
    if window > 1 and num_rows < window:
        faults.add(file.name, f": a window has {window} rows, but there are {num_rows}")
    elif not num_rows and faults.num == num_faults:
        faults.add(file.name, ": no rows")


def _good_rows(
    model: Model, file: str, rows: list[Row], columns: Columns, window: int, faults: Faults
) -> list[Row]:
    """Those that the model takes; the others are faults."""
    good = []
    for row in rows:
        try:
            _parse(model, [row], columns, window)
        except BadInput as error:
            faults.add(row.place(file), re.sub(r"^row 1\b", "", str(error)))
        else:
            good.append(row)
    return good


def _parse(model: Model, rows: list[Row], columns: Columns, window: int) -> Any:
    """The scorer's input; too few rows for a window are made up for, so that they are looked at."""
    missing = max(0, window - len(rows))
    return model.scorer.parse(_body([*rows, *rows[-1:] * missing], columns), JSON)


def _body(rows: Sequence[Row], columns: Columns) -> bytes:
    table = {"columns": columns.names, "data": [row.cells for row in rows]}
    return json.dumps({"dataframe_split": table}).encode()


def _of_pictures(model: Model, files: Sequence[DataFile], faults: Faults) -> Iterator[Scored]:
    for start in range(0, len(files), _PICTURES_AT_ONCE):
        names, pictures = [], []
        for file in files[start : start + _PICTURES_AT_ONCE]:
            try:
                pictures.append(model.scorer.parse(_content(file), _PICTURE))
            except BadInput as error:
                faults.add(file.name, re.sub(r"^row 1, column 'image'", "", str(error)))
            else:
                names.append(file.name)
        if pictures:
            answers = model.scorer.score(pictures)
            for name, picture, answer in zip(names, pictures, answers, strict=True):
                yield Scored(picture, answer, [{"file": name}])


def _content(file: DataFile) -> bytes:
    try:
        with file.filesystem.open_input_stream(file.path, compression=None) as stream:
            return stream.read()
    except OSError as error:
        raise unreadable(file.name, error) from None
