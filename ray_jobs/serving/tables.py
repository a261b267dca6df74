"""Tables of numbers in the bodies of requests: CSV, and the JSON shapes of MLflow.

Rows are counted from 1, without the header.

Source: MLflow, "Local Inference Spec for Custom Models" (dataframe_split, dataframe_records,
instances, inputs, params).

Shapes: R rows, F features.
"""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.serving.errors import BadInput

SHAPES = ("dataframe_split", "dataframe_records", "instances", "inputs")
LARGEST = 1e15  # no sensor gives it, and its square is still a float32
_BOM = b"\xef\xbb\xbf"
_SHOWN = reprlib.Repr()  # of a cell in a message: a line at most, however deep or long it is
_SHOWN.maxstring = _SHOWN.maxother = 40

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """The columns that a model takes."""

    names: tuple[str, ...]
    # Then a cell may be empty, a column absent, and others there that the model does not read.
    may_be_missing: bool = False


@dataclass(frozen=True)
class JsonTable:
    """Cells as JSON has them."""

    names: tuple[str, ...]
    rows: list[list[Any]]  # each as long as `names`
    params: dict[str, Any]


# CSV


def read_csv(body: bytes, columns: Columns) -> Floats:
    """The rows [R, F] of a CSV body.

    It has a header where no cell of its first row is a number; the names may come in any order.

    Raises:
        BadInput: names the row and the column.
    """
    lines = body.removeprefix(_BOM).rstrip().splitlines()
    if not lines:
        raise BadInput(f"the body is empty; give rows of {len(columns.names)} numbers", status=400)
    names = columns.names
    header = _cells(lines[:1])[0]
    if not any(_is_number(cell) for cell in header) and any(cell.strip() for cell in header):
        names = tuple(cell.strip() for cell in header)
        del lines[0]
        _check_names(names, columns)
    rows = _plain_rows(lines)
    if rows is None:
        rows = [
            [_number(cell, number, column, columns) for cell, column in _paired(row, number, names)]
            for number, row in enumerate(_cells(lines), start=1)
        ]
    return _matrix(rows, names, columns)


def _plain_rows(lines: list[bytes]) -> list[list[float]] | None:
    """The quick way, for cells that are plain numbers; None where one is not."""
    try:
        rows = [list(map(float, line.split(b","))) for line in lines]
    except ValueError:
        return None
    # Python's float() takes 1_000, which is nobody else's number.
    return None if any(b"_" in line for line in lines) else rows


def _cells(lines: list[bytes]) -> list[list[str]]:
    text = [line.decode("utf-8", errors="replace") for line in lines]
    try:
        return [row if row else [""] for row in csv.reader(text, strict=True)]
    except csv.Error as error:
        raise BadInput(f"the body is not CSV: {error}", status=400) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _number(cell: str, row: int, column: str, columns: Columns) -> float:
    if column not in columns.names:
        return float("nan")  # not read
    if _is_number(cell):
        return float(cell)
    if not cell.strip() and columns.may_be_missing:
        return float("nan")
    raise BadInput(f"row {row}, column {column!r}: {_SHOWN.repr(cell.strip())} is not a number")


def _paired(row: list[str], number: int, names: tuple[str, ...]) -> list[tuple[str, str]]:
    _check_width(row, number, names)
    return list(zip(row, names, strict=True))


# JSON


def read_json(body: bytes, columns: Columns) -> JsonTable:
    """The table in a JSON body, in any of `SHAPES`.

    Raises:
        BadInput: names what is wrong with it, and the row.
    """
    try:
        document = json.loads(body)
    except RecursionError:
        raise BadInput("the body is nested too deeply", status=400) from None
    except ValueError as error:  # undecodable text, too, and numbers of thousands of digits
        raise BadInput(f"the body is not JSON: {error}", status=400) from None
    given = [name for name in SHAPES if name in document] if isinstance(document, dict) else []
    if len(given) != 1 or set(document) - {"params"} != set(given):
        raise BadInput(
            f"the body must be an object with one of {', '.join(SHAPES)}, and beside it nothing "
            "but params",
            status=400,
        )
    params = {} if document.get("params") is None else document["params"]
    if not isinstance(params, dict):
        raise BadInput("params must be an object")
    (shape,) = given
    content = document[shape]
    if shape == "dataframe_split":
        names, rows = _split(content)
    elif shape == "inputs" and isinstance(content, dict):
        names, rows = _columnar(content)
    else:
        names, rows = columns.names, _listed(content, shape, columns)
    _check_names(names, columns)
    if not rows:
        raise BadInput(f"{shape} has no rows")
    for number, row in enumerate(rows, start=1):
        _check_width(row, number, names)
    return JsonTable(names, rows, params)


def numbers_of(table: JsonTable, columns: Columns) -> Floats:
    """The numbers [R, F] of a table.

    Raises:
        BadInput: a cell is not a number, or not within `LARGEST`; names its row and column.
    """
    rows = [
        row
        if {float, int}.issuperset(map(type, row))
        else [
            _json_number(cell, number, name, columns)
            for cell, name in zip(row, table.names, strict=True)
        ]
        for number, row in enumerate(table.rows, start=1)
    ]
    return _matrix(rows, table.names, columns)


def _json_number(cell: Any, row: int, column: str, columns: Columns) -> float:
    if column not in columns.names:
        return float("nan")  # not read
    if type(cell) in (int, float):  # a bool is an int, but no measurement
        return cell
    if cell is None and columns.may_be_missing:
        return float("nan")
    raise BadInput(f"row {row}, column {column!r}: {_SHOWN.repr(cell)} is not a number")


def _split(content: Any) -> tuple[tuple[str, ...], list[Any]]:
    split = content if isinstance(content, dict) else {}
    names, rows = split.get("columns"), split.get("data")
    if isinstance(names, list) and isinstance(rows, list):
        texts = [name for name in names if isinstance(name, str)]
        if len(texts) == len(names):
            return tuple(texts), rows
    raise BadInput("dataframe_split must have columns, a list of names, and data, a list")


def _columnar(content: dict[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
    columns = list(content.values())
    if not all(isinstance(column, list) for column in columns):
        raise BadInput("inputs must be a list of rows, or an object of lists by column")
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name!r} has {len(cells)}" for name, cells in content.items())
        raise BadInput(f"the columns of inputs differ in length: {lengths[:200]}")
    return tuple(content), [list(row) for row in zip(*columns, strict=True)]


def _listed(content: Any, shape: str, columns: Columns) -> list[Any]:
    if not isinstance(content, list):
        raise BadInput(f"{shape} must be a list of rows")
    rows = []
    for number, row in enumerate(content, start=1):
        if isinstance(row, dict):
            rows.append(_record(row, number, columns))
        elif shape == "dataframe_records":
            raise BadInput(f"row {number} must be an object of values by column")
        else:
            rows.append([row] if isinstance(row, str) and len(columns.names) == 1 else row)
    return rows


def _record(record: dict[str, Any], number: int, columns: Columns) -> list[Any]:
    if not columns.may_be_missing:
        for name in columns.names:
            if name not in record:
                raise BadInput(f"row {number}, column {name!r} is missing")
        for name in record:
            if name not in columns.names:
                raise BadInput(f"row {number}, column {_SHOWN.repr(name)} is none of the model's")
    return [record.get(name) for name in columns.names]


# Both


def _check_names(names: Sequence[str], columns: Columns) -> None:
    if names is columns.names:
        return
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise BadInput(f"row 1, column {_SHOWN.repr(twice)} is there twice")
    missing = [name for name in columns.names if name not in names]
    unknown = [name for name in names if name not in columns.names]
    if columns.may_be_missing:
        if len(missing) == len(columns.names):
            raise BadInput(f"no column is one of the model's; it takes {columns.names[0]!r}, ...")
    elif unknown:
        raise BadInput(
            f"row 1, column {_SHOWN.repr(unknown[0])} is none of the model's; it takes "
            f"{', '.join(columns.names)}"
        )
    elif missing:
        raise BadInput(f"row 1, column {missing[0]!r} is missing")


def _check_width(row: Any, number: int, names: tuple[str, ...]) -> None:
    if not isinstance(row, list):
        raise BadInput(f"row {number} must be a list of {len(names)} values")
    if len(row) < len(names):
        raise BadInput(
            f"row {number} has {len(row)} columns where {len(names)} are needed: column "
            f"{names[len(row)]!r} is missing"
        )
    if len(row) > len(names):
        raise BadInput(
            f"row {number} has {len(row)} columns where {len(names)} are needed: there is one "
            f"after the last, column {names[-1]!r}"
        )


def _matrix(rows: list[list[float]], names: tuple[str, ...], columns: Columns) -> Floats:
    if not rows:
        raise BadInput("there are no rows")
    if set(map(len, rows)) != {len(names)}:
        for number, row in enumerate(rows, start=1):
            _check_width(row, number, names)
    try:
        x = np.array(rows, np.float64)
    except OverflowError:  # an integer beyond any float
        x = np.array([[float(max(-1e300, min(1e300, cell))) for cell in row] for row in rows])
    if names != columns.names:
        x = _arranged(x, names, columns)
    is_bad = ~(np.abs(x) <= LARGEST)  # NaN, too
    if columns.may_be_missing:
        is_bad &= ~np.isnan(x)
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0].tolist()
        value = x[row, column]
        reason = "out of range" if np.isfinite(value) else "not a finite number"
        raise BadInput(f"row {row + 1}, column {columns.names[column]!r}: {value:g} is {reason}")
    return x


def _arranged(x: Floats, names: tuple[str, ...], columns: Columns) -> Floats:
    """The model's columns in its order; NaN where one is absent."""
    arranged = np.full((len(x), len(columns.names)), np.nan)
    places = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(columns.names):
        if name in places:
            arranged[:, number] = x[:, places[name]]
    return arranged
