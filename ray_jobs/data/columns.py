"""The columns of a user's table, each read as what it is for: label, feature, group, time or id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t
from numpy.typing import NDArray

from ray_jobs.data.table import Table, nearest
from ray_jobs.errors import DataError

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_MAX_SHOWN = 5


def require(table: Table, name: str, key: str) -> pa.ChunkedArray:
    """The column that a spec key names.

    Raises:
        DataError: there is none of that name; the nearest is suggested.
    """
    names = table.columns.column_names
    if name not in names:
        where = table.files[0].name
        raise DataError(
            f"{where}: no column {name!r}, which {key} names; there is {', '.join(names)}"
            f"{nearest(name, names)}"
        )
    return table.columns.column(name)


def labels(table: Table, name: str | None, *, needs_both: bool = True) -> NDArray[np.int8]:
    """The label column as 0 and 1, shape [N].

    Args:
        needs_both: one class alone is refused.

    Raises:
        DataError: none is named, cells are missing, values are not 0 and 1, or one class only.
    """
    if name is None:
        binary = [name for name in table.columns.column_names if _is_binary(table.columns[name])]
        raise DataError(
            f"{table.files[0].name}: which column is the label? Set data.label_column to one of "
            f"{', '.join(table.columns.column_names)}"
            + (f"; with two values: {', '.join(map(repr, binary))}" if binary else "")
        )
    column = require(table, name, "data.label_column")
    refuse_missing(table, column, name, "label")
    if not _is_binary(column):
        values = pc.unique(column).to_pylist()
        shown = ", ".join(map(repr, values[:_MAX_SHOWN]))
        raise DataError(
            f"{table.files[0].name}: the label column {name!r} must hold 0 and 1 (or false and "
            f"true), but holds {shown}{', ...' * (len(values) > _MAX_SHOWN)}. Recode it, or set "
            "data.label_column to another column"
        )
    y = pc.cast(column, pa.int8(), safe=False).to_numpy()
    if needs_both and len(np.unique(y)) < 2:
        raise DataError(
            f"{table.files[0].name}: the label column {name!r} holds only {y[0]}: one class "
            "cannot be learned. Add rows of the other, or set data.label_column to another column"
        )
    return y


def codes(table: Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """A group column as codes 0, 1, ... by first appearance, shape [N], and each code's value."""
    column = require(table, name, "data.group_column")
    refuse_missing(table, column, name, "group")
    encoded = column.combine_chunks().dictionary_encode()
    names = [str(value) for value in encoded.dictionary.to_pylist()]
    return encoded.indices.to_numpy().astype(np.int64), names


def times(table: Table, name: str) -> NDArray[np.int64] | NDArray[np.float64]:
    """A time column as numbers that can be compared, shape [N].

    Raises:
        DataError: a time is missing, or the column holds neither numbers nor ISO 8601 times.
    """
    column = require(table, name, "data.time_column")
    refuse_missing(table, column, name, "time")
    if not is_clock_type(column.type):
        raise DataError(
            f"{table.place(0)}: the time column {name!r} holds {column[0].as_py()!r}, which is "
            "neither a number nor a date and time like 2024-05-31 12:00:00. Rewrite it, or leave "
            "data.time_column out"
        )
    return clock_values(column)


def row_ids(table: Table, name: str | None) -> NDArray[np.int64]:
    """A unique number a row: the id column, or the row's position. Texts are hashed. Shape [N].

    Raises:
        DataError: an id is missing or stands twice.
    """
    if name is None:
        return np.arange(table.columns.num_rows)
    column = require(table, name, "data.id_column")
    refuse_missing(table, column, name, "id")
    if t.is_integer(column.type):
        ids = column.to_numpy().astype(np.int64)
    else:
        texts = (str(value).encode() for value in column.to_pylist())
        hashes = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
        ids = np.frombuffer(b"".join(hashes), "<i8").astype(np.int64)
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if np.any(counts > 1):
        row = int(first[np.argmax(counts > 1)])
        again = int(np.flatnonzero(ids == ids[row])[1])
        raise DataError(
            f"{table.place(again)}: the id {column[row].as_py()!r} of column {name!r} stands in "
            f"{table.place(row)} already. Make ids unique, or leave data.id_column out"
        )
    return ids


def refuse_missing(table: Table, column: pa.ChunkedArray, name: str, role: str) -> None:
    """Raise DataError if a cell of a column that everything hangs on is empty or NaN."""
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    if missing.any():
        row = int(np.argmax(missing))
        count = int(missing.sum())
        raise DataError(
            f"{table.place(row)}: the {role} column {name!r} is empty there"
            f"{f' and in {count - 1} other rows' * (count > 1)}. Fill it in, or delete such rows"
        )


def numeric_columns(table: Table, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Which of the columns hold numbers, and for the others why they cannot be learned from.

    Raises:
        DataError: a column of numbers has text in it; the first such cell is named.
    """
    numeric, excluded = [], {}
    for name in names:
        column = table.columns.column(name)
        if column.null_count == len(column):
            excluded[name] = "empty"
        elif _is_number(column.type):
            numeric.append(name)
        elif _is_text(column.type):
            row, share = _first_text(column)
            if share == 0:
                numeric.append(name)
            elif share < 0.5:
                _refuse_text(table, name, row)
            else:
                excluded[name] = f"text ({column[row].as_py()!r})"
        else:
            excluded[name] = f"not a number ({column.type})"
    return numeric, excluded


def require_numeric(table: Table, name: str) -> None:
    """Raise DataError if a column named as a feature does not hold numbers."""
    column = require(table, name, "data.feature_columns")
    if _is_number(column.type):
        return
    if _is_text(column.type):
        row, share = _first_text(column)
        if share == 0:
            return
        _refuse_text(table, name, row)
    raise DataError(
        f"{table.files[0].name}: the column {name!r} holds {column.type}, not numbers. "
        "Rewrite it as numbers, or leave it out of data.feature_columns"
    )


def is_clock_type(kind: pa.DataType) -> bool:
    """Whether a column of this type may tell the time."""
    return (t.is_temporal(kind) or _is_number(kind)) and not t.is_boolean(kind)


def clock_values(column: pa.ChunkedArray) -> NDArray[np.int64] | NDArray[np.float64]:
    """Numbers, or dates and times, as int64, or as float64 with NaN where empty. Shape [N]."""
    if t.is_temporal(column.type):
        width = pa.int32() if column.type.bit_width == 32 else pa.int64()
        column = column.cast(width).cast(pa.int64())
    if t.is_integer(column.type) and not column.null_count:
        return column.to_numpy().astype(np.int64)
    return _as_float(column, pa.float64())


def is_constant(column: pa.ChunkedArray) -> bool:
    """Whether all cells that are not empty hold the same."""
    return len(pc.unique(column.drop_null())) <= 1


def matrix(table: Table, names: Sequence[str]) -> NDArray[np.float32]:
    """Columns as 32-bit floats, shape [N, F]; NaN where empty, infinite beyond their range."""
    x = np.empty((table.columns.num_rows, len(names)), np.float32)
    for j, name in enumerate(names):
        x[:, j] = _as_float(table.columns.column(name), pa.float32())
    return x


def refuse_nonfinite(table: Table, x: NDArray[np.float32], names: Sequence[str]) -> None:
    """Raise DataError at the first cell, in file order, that is empty, NaN or infinite."""
    bad = ~np.isfinite(x)
    if not bad.any():
        return
    row = int(np.argmax(bad.any(axis=1)))
    name = names[int(np.argmax(bad[row]))]
    cell = table.columns.column(name)[row].as_py()
    raise DataError(
        f"{table.place(row)}: column {name!r} is {'empty' if cell is None else cell}; such cells "
        f"(empty, NaN or infinite) in all: {int(bad.sum())}, in {int(bad.any(axis=0).sum())} of "
        f"{len(names)} columns. Mend them, or set data.nonfinite to drop (leave such rows out) or "
        "impute (fill in train's median)"
    )


def _is_binary(column: pa.ChunkedArray) -> bool:
    """Whether a column holds nothing but 0 and 1, or booleans."""
    if t.is_boolean(column.type):
        return True
    if not _is_number(column.type):
        return False
    return bool(pc.all(pc.or_(pc.equal(column, 0), pc.equal(column, 1)), min_count=0).as_py())


def _as_float(column: pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """Numbers, or numbers written as text, as floats; NaN where a cell is empty. Shape [N]."""
    if _is_text(column.type):
        column = pc.utf8_trim_whitespace(column)
    if t.is_decimal(column.type):
        column = column.cast(pa.float64())
    return pc.cast(column, kind, safe=False).to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    tests = (t.is_integer, t.is_floating, t.is_boolean, t.is_decimal)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)


def _first_text(column: pa.ChunkedArray) -> tuple[int, float]:
    """The first row whose text is no number, and the share of such cells among those not empty."""
    is_text = pc.fill_null(pc.invert(pc.match_substring_regex(column, _NUMBER)), False).to_numpy()
    return int(np.argmax(is_text)), float(is_text.sum() / (len(column) - column.null_count))


def _refuse_text(table: Table, name: str, row: int) -> None:
    text = table.columns.column(name)[row].as_py()
    raise DataError(
        f"{table.place(row)}: column {name!r} holds numbers, but {text!r} there. Correct the cell "
        "(leave it empty if the value is unknown), or name the columns to learn from in "
        "data.feature_columns"
    )
