"""Outcomes: the truth about requests, which comes later than their answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import DataError
from ray_jobs.storage import answering, brief_cause, resolve_filesystem

if TYPE_CHECKING:
    from pyarrow import Buffer

_ID, _ROW, _LABEL = "request_id", "row", "label"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Outcomes:
    """Labels by request id, in the order of the file; of each request by row, counted from 0. The
    row None stands for the only prediction of a request."""

    labels: Mapping[str, Mapping[int | None, str]]


def read_outcomes(uri: str) -> Outcomes:
    """Read a table of the columns request_id, label and maybe row. Rows that become known later are
    to be appended: a comparison takes them in their order, so that an earlier look saw the first of
    them, and the truth of one request at once.

    Args:
        uri: a path or s3:// URI; .csv, .parquet or .jsonl.

    Raises:
        DataError: it cannot be read, lacks a column, or has two labels for one row; names the line.
    """
    labels: dict[str, dict[int | None, str]] = {}
    for place, line in enumerate(_rows(uri), start=1):
        missing = [name for name in (_ID, _LABEL) if line.get(name) in (None, "")]
        if missing:
            raise DataError(f"{uri}: row {place} has no {missing[0]}; give request_id and label")
        row = _row_number(uri, place, line.get(_ROW))
        of_request = labels.setdefault(str(line[_ID]), {})
        label = str(line[_LABEL])
        if of_request.setdefault(row, label) != label:
            raise DataError(
                f"{uri}: row {place} says {label!r} of request {line[_ID]!r}, an earlier one "
                f"{of_request[row]!r}; leave one of them out"
            )
    if not labels:
        raise DataError(f"{uri}: there is no row; give request_id and label")
    return Outcomes(labels)


def _row_number(uri: str, place: int, value: Any) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = -1
    if number < 0 or number != float(value):
        raise DataError(f"{uri}: row {place}: {_ROW} {value!r} is no number from 0") from None
    return number


def _rows(uri: str) -> Iterable[Row]:
    kind = next((read for ending, read in _READERS.items() if uri.lower().endswith(ending)), None)
    if kind is None:
        raise DataError(f"{uri}: outcomes must be one of {', '.join(_READERS)}")
    filesystem, path = resolve_filesystem(uri)
    try:
        with answering(uri), filesystem.open_input_file(path) as file:
            content = file.read_buffer()
        return list(kind(content))
    except FileNotFoundError:
        raise DataError(f"{uri}: no such file") from None
    except (ValueError, csv.Error) as error:  # pyarrow's errors of what is no Parquet among them
        raise DataError(f"{uri}: cannot be read: {brief_cause(error)}") from None


def _csv(content: Buffer) -> Iterator[Row]:
    text = str(content, "utf-8-sig")
    yield from csv.DictReader(io.StringIO(text, newline=""))


def _parquet(content: Buffer) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    yield from pq.read_table(pa.BufferReader(content)).to_pylist()


def _json_lines(content: Buffer) -> Iterator[Row]:
    for line in str(content, "utf-8").splitlines():
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            yield row


_READERS: dict[str, Callable[[Buffer], Iterator[Row]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
