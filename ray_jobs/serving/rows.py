"""Rows of users' files of any size, CSV or Parquet, as the columns that a model takes."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from ray_jobs.data.table import SPLITS_FILE, DataFile, nearest
from ray_jobs.errors import DataError
from ray_jobs.serving.tables import Columns
from ray_jobs.storage import StorageUnavailable, brief_cause, outage, resolve_filesystem

_TEXT = (".csv", ".tsv", ".txt")
TABLES = (
    *_TEXT,
    *(text + packed for text in _TEXT for packed in (".gz", ".bz2", ".zst", ".lz4")),
    ".parquet",
    ".pq",
)
_BATCH_ROWS = 4096
_NUM_TOLD = 5  # faults

Cell = float | int | bool | str | None  # a text that is no number stays one


@dataclass(frozen=True)
class Row:
    """A row of a file."""

    number: int  # from 1, without the header
    line: int | None  # from 1, where it ends; None: of a Parquet file
    cells: list[Cell]  # in the model's order

    def place(self, file: str) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{file}, row {self.number}{line}"


@dataclass
class Faults:
    """Rows or files that the model cannot take: the first ends the work, or all are counted.

    Args:
        skip: count them.
    """

    skip: bool
    num: int = 0
    told: list[str] = field(default_factory=list)  # the first few

    def add(self, place: str, reason: str) -> None:
        """Note one.

        Raises:
            DataError: nothing is to be skipped.
        """
        if not self.skip:
            raise DataError(f"{place}{reason}. Mend it, or leave such out with --skip-bad")
        self.num += 1
        if len(self.told) < _NUM_TOLD:
            self.told.append(place + reason)


def find_inputs(uri: str, endings: Sequence[str]) -> list[DataFile]:
    """A file, or the files below a folder or s3:// prefix that have one of the endings, by path.

    Raises:
        DataError: nothing is there, or nothing with such an ending.
    """
    filesystem, root = resolve_filesystem(uri)
    try:
        info = filesystem.get_file_info(root)
        is_folder = info.type == FileType.Directory
        found = filesystem.get_file_info(FileSelector(root, recursive=True)) if is_folder else []
    except OSError as error:
        raise unreadable(uri, error) from None
    kinds = ", ".join(ending for ending in endings if ending.count(".") == 1)
    if info.type == FileType.NotFound:
        raise DataError(f"{uri}: no such file or folder; give one that holds {kinds}")
    if not is_folder:
        if not root.lower().endswith(tuple(endings)):
            raise DataError(f"{uri}: not known by its ending; the model takes {kinds}")
        return [DataFile(root.rpartition("/")[2], root, filesystem)]
    base = root.rstrip("/") + "/"
    names = sorted(one.path.removeprefix(base) for one in found if one.type == FileType.File)
    taken = [name for name in names if _is_meant(name, endings)]
    if not taken:
        raise DataError(f"{uri}: none of its {len(names)} files is one of {kinds}")
    return [DataFile(name, base + name, filesystem) for name in taken]


def _is_meant(name: str, endings: Sequence[str]) -> bool:
    """Whether a file met in a folder is: hidden ones, notes and Emberline's own split table are
    not, nor a Mac's ._a.jpg beside each a.jpg."""
    parts = name.lower().split("/")
    is_hidden = any(part.startswith((".", "_")) for part in parts)
    is_note = parts[-1].endswith(".txt") or parts[-1] == SPLITS_FILE
    return parts[-1].endswith(tuple(endings)) and not is_hidden and not is_note


def read_batches(file: DataFile, columns: Columns, faults: Faults) -> Iterator[list[Row]]:
    """The rows of a file, some thousand at once. Columns are found by name, in any order; others
    are not read. A CSV file whose first line has numbers is taken to be in the model's order.

    Raises:
        DataError: the file is damaged, or a column is missing; or a line has too many or too few
            values, unless `faults` skips it.
    """
    try:
        rows = _parquet_rows(file, columns) if file.is_parquet else _csv_rows(file, columns, faults)
        while batch := list(itertools.islice(rows, _BATCH_ROWS)):
            yield batch
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}: not UTF-8 ({error.reason}). Save the file as UTF-8"
        ) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise unreadable(file.name, error) from None


def unreadable(name: str, error: Exception) -> Exception:
    """What to raise of a file that cannot be read."""
    told = outage(name, error) if isinstance(error, OSError) else None
    if isinstance(told, StorageUnavailable):
        return told
    return DataError(
        f"{name}: cannot be read, damaged or not what its ending says: {brief_cause(error)}"
    )


def _csv_rows(file: DataFile, columns: Columns, faults: Faults) -> Iterator[Row]:
    with file.open_text() as stream:
        lines = iter(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        num_blank, first = next(
            ((number, line) for number, line in enumerate(lines) if line.strip()), (0, "")
        )
        if not first:
            raise DataError(f"{file.name}: the file is empty; give one with a header and rows")
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
        try:
            yield from _rows_of(reader, num_blank, file.name, columns, faults)
        except csv.Error as error:
            line = reader.line_num + num_blank
            raise DataError(f"{file.name}, line {line}: not CSV: {error}") from None


def _rows_of(
    reader: Any, num_blank: int, file: str, columns: Columns, faults: Faults
) -> Iterator[Row]:
    header = next(reader)
    names, rows = [cell.strip() for cell in header], reader
    if any(isinstance(_value(cell), float) for cell in header):
        if len(header) != len(columns.names):
            raise DataError(
                f"{file}: no header, and {len(header)} values in its first line where the model "
                f"takes {len(columns.names)}. Give it a header with the columns' names"
            )
        names, rows = list(columns.names), itertools.chain([header], reader)
    places = _places(file, names, columns)
    number = 0
    for cells in rows:
        if not cells:  # a blank line
            continue
        number += 1
        line = reader.line_num + num_blank
        if len(cells) == len(names):
            values = [None if place is None else _value(cells[place]) for place in places]
            yield Row(number, line, _missing_told(values, columns))
        else:
            place = Row(number, line, []).place(file)
            faults.add(place, f" has {len(cells)} values where there are {len(names)} columns")


def _parquet_rows(file: DataFile, columns: Columns) -> Iterator[Row]:
    with file.filesystem.open_input_file(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        places = _places(file.name, names, columns)
        wanted = [names[place] for place in places if place is not None]
        number = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted):
            by_name = {name: _cells(batch.column(name)) for name in wanted}
            absent: list[Cell] = [None] * len(batch)
            ordered = [by_name.get(name, absent) for name in columns.names]
            for cells in zip(*ordered, strict=True):
                number += 1
                yield Row(number, None, _missing_told(list(cells), columns))


def _places(file: str, names: Sequence[str], columns: Columns) -> list[int | None]:
    """Where each of the model's columns stands; None: absent."""
    missing = [name for name in columns.names if name not in names]
    twice = [name for name in columns.names if list(names).count(name) > 1]
    if twice:
        raise DataError(f"{file}: the column {twice[0]!r} is there twice. Rename or delete one")
    if columns.may_be_missing and len(missing) == len(columns.names):
        raise DataError(
            f"{file}: no column is one of the model's; it takes {columns.names[0]!r}, ..."
        )
    if missing and not columns.may_be_missing:
        raise DataError(
            f"{file}: no column {missing[0]!r}{nearest(missing[0], names)}; the model takes "
            f"{', '.join(columns.names)}"
        )
    return [None if name in missing else list(names).index(name) for name in columns.names]


def _cells(column: pa.Array) -> list[Cell]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.to_pylist()
    texts = column.cast(pa.string()).to_pylist()
    return [None if text is None else _value(text) for text in texts]


def _value(text: str) -> Cell:
    """The number that a text is; else the text, or None where there is none."""
    if "_" in text:  # Python's float() takes 1_000, which is nobody else's number
        return text
    try:
        return float(text)
    except ValueError:
        return text.strip() or None


def _missing_told(cells: list[Cell], columns: Columns) -> list[Cell]:
    """With '' for what is missing and must not be, which is told as such."""
    if columns.may_be_missing or None not in cells:
        return cells
    return ["" if cell is None else cell for cell in cells]
