"""The user's own files, CSV or Parquet, local or on s3://, as one table that knows its lines."""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from ray_jobs.data.shards import Roles, read_roles
from ray_jobs.errors import DataError, EmberlineError
from ray_jobs.storage import StorageUnavailable, brief_cause, outage, resolve_filesystem

SPLITS_FILE = "splits.parquet"  # stands beside Emberline's own rows and is none of them

_NAME = re.compile(r"\.(?:(?P<text>csv|tsv|txt)(?:\.(?:gz|bz2|zst|lz4))?|(?P<parquet>parquet|pq))$")
_KINDS = "CSV (.csv, .tsv, .txt; also .gz, .bz2, .zst) or Parquet (.parquet, .pq)"


@dataclass(frozen=True)
class DataFile:
    """One file of a table."""

    name: str  # as messages name it
    path: str  # within the filesystem
    filesystem: FileSystem

    @property
    def is_parquet(self) -> bool:
        return self.path.lower().endswith((".parquet", ".pq"))

    def open_text(self) -> pa.NativeFile:
        """The bytes of a CSV file, decompressed."""
        return self.filesystem.open_input_stream(self.path, compression="detect")

    def lines(self) -> Iterator[str]:
        """The lines of a CSV file, with their line ends."""
        with self.open_text() as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")


@dataclass(frozen=True)
class Table:
    """The columns of all files, one below the other."""

    columns: pa.Table
    files: tuple[DataFile, ...]
    first_row: NDArray[np.int64]  # [number of files], the row at which each begins
    roles: Roles | None  # what Emberline's own Parquet declares

    def file_of_row(self) -> NDArray[np.int64]:
        """The index of each row's file, shape [N]."""
        lengths = np.diff(np.r_[self.first_row, self.columns.num_rows])
        return np.repeat(np.arange(len(self.files)), lengths)

    def place(self, row: int) -> str:
        """Where a user finds a row: the file and the line (for Parquet the row), counted from 1."""
        index = int(np.searchsorted(self.first_row, row, side="right")) - 1
        file, row_in_file = self.files[index], int(row - self.first_row[index])
        if file.is_parquet:
            return f"{file.name}, row {row_in_file + 1}"
        filled = (number for number, line in enumerate(file.lines(), 1) if line.strip("\r\n"))
        line = next(number for i, number in enumerate(filled) if i == row_in_file + 1)
        return f"{file.name}, line {line}"


def find_files(uri: str) -> list[DataFile]:
    """The CSV and Parquet files of a path, folder, glob or s3:// prefix, sorted by path.

    Raises:
        DataError: nothing is there, it cannot be read, or it is neither CSV nor Parquet.
    """
    filesystem, root = resolve_filesystem(uri)
    try:
        base, found = _matches(filesystem, root)
    except OSError as error:
        raise _unreadable(uri, error) from None
    if base is None:
        raise DataError(
            f"{uri}: no such file or folder. Set data.path to a file, folder, glob or s3:// prefix "
            f"of {_KINDS}"
        )
    if not found:
        raise DataError(f"{uri}: no data file there. Emberline reads {_KINDS}")
    paths = sorted(info.path for info in found if info.type == FileType.File)
    files = [DataFile(path.removeprefix(base).lstrip("/"), path, filesystem) for path in paths]
    for file in files:
        if not _NAME.search(file.path.lower()):
            raise DataError(f"{file.name}: not known by its ending. Emberline reads {_KINDS}")
    return files


def content_digest(files: Sequence[DataFile]) -> str:
    """sha256 of the files' names and bytes.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        try:
            with file.filesystem.open_input_stream(file.path, compression=None) as stream:
                while chunk := stream.read(1 << 20):
                    content.update(chunk)
        except OSError as error:
            raise _unreadable(file.name, error) from None
        digest.update(f"{file.name}\n{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def read_table(files: Sequence[DataFile]) -> Table:
    """Read all files and set them one below the other.

    Raises:
        DataError: a file is empty, damaged, not UTF-8 or has a column twice, or columns differ.
    """
    tables: list[pa.Table] = []
    roles: Roles | None = None
    for file in files:
        columns = _read_parquet(file) if file.is_parquet else _read_csv(file)
        roles = roles or read_roles(columns.schema)
        if tables:
            _check_same_columns(files[0].name, tables[0].column_names, file.name, columns)
            columns = columns.select(tables[0].column_names)
        tables.append(columns.replace_schema_metadata(None))
    try:
        whole = pa.concat_tables(_mixed_as_text(tables), promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the files' columns do not fit together: {brief_cause(error)}. Give it one type"
        ) from None
    if whole.num_rows == 0:
        raise DataError(f"{files[0].name}: a header and no rows. Give data.path a file with rows")
    first_row = np.cumsum([0] + [table.num_rows for table in tables[:-1]])
    return Table(whole, tuple(files), first_row, roles)


def nearest(name: str, names: Sequence[str]) -> str:
    """A guess at what was meant, to end a message with."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _matches(filesystem: FileSystem, root: str) -> tuple[str | None, list[FileInfo]]:
    """The folder that names are told relative to, and the files. No folder: nothing is there."""
    info = filesystem.get_file_info(root)
    if info.type == FileType.File:
        return root.rpartition("/")[0], [info]
    if info.type == FileType.Directory:
        below = filesystem.get_file_info(FileSelector(root, recursive=True))
        return root, [info for info in below if _is_data(info.path.removeprefix(root))]
    wild = re.search(r"[*?\[]", root)
    if not wild:
        return None, []
    folder = root[: wild.start()].rpartition("/")[0]
    pattern = re.compile(_glob_regex(root))
    recursive = "/" in root[wild.start() :]
    below = filesystem.get_file_info(
        FileSelector(folder, recursive=recursive, allow_not_found=True)
    )
    return folder, [info for info in below if pattern.fullmatch(info.path)]


def _is_data(path: str) -> bool:
    """Whether a file met in a folder is meant: hidden ones, notes and the split table are not."""
    parts = path.strip("/").split("/")
    hidden = any(part.startswith((".", "_")) for part in parts)
    is_note = parts[-1].lower().endswith(".txt") or parts[-1] == SPLITS_FILE
    return bool(_NAME.search(parts[-1].lower())) and not hidden and not is_note


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` stay within a folder, `**/` crosses folders."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", pattern)
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        wild.get(part, part if part.startswith("[") and i % 2 else re.escape(part))
        for i, part in enumerate(parts)
    )


def _read_parquet(file: DataFile) -> pa.Table:
    try:
        with file.filesystem.open_input_file(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            _check_names(file.name, parquet.schema_arrow.names)
            return _decoded(parquet.read())
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file.name, error) from None


def _decoded(columns: pa.Table) -> pa.Table:
    """Categories as the values they stand for."""
    for i, field in enumerate(columns.schema):
        if pa.types.is_dictionary(field.type):
            columns = columns.set_column(
                i, field.name, columns.column(i).cast(field.type.value_type)
            )
    return columns


def _read_csv(file: DataFile) -> pa.Table:
    try:
        names, delimiter, num_skipped = _header(file)
        with file.open_text() as stream:
            columns = pa_csv.read_csv(
                stream,
                read_options=pa_csv.ReadOptions(column_names=names, skip_rows=num_skipped),
                parse_options=pa_csv.ParseOptions(delimiter=delimiter),
                convert_options=pa_csv.ConvertOptions(strings_can_be_null=True),
            )
    except pa.ArrowInvalid as error:
        _check_utf8(file)
        raise _malformed(file, len(names), delimiter, error) from None
    except OSError as error:
        raise _unreadable(file.name, error) from None
    if any(pa.types.is_binary(field.type) for field in columns.schema):
        _check_utf8(file)
    return columns


def _header(file: DataFile) -> tuple[list[str], str, int]:
    """Column names, the delimiter (one of , ; tab), and how many lines stand before the rows."""
    with file.open_text() as stream:
        start = stream.read(1 << 20)
    lines = start.removeprefix(codecs.BOM_UTF8).splitlines()
    number = next((i for i, line in enumerate(lines) if line.strip()), None)
    if number is None:
        raise DataError(f"{file.name}: the file is empty. Give data.path a file with a header")
    try:
        line = lines[number].decode("utf-8")
    except UnicodeDecodeError:
        _check_utf8(file)
        raise
    delimiter = max(",;\t", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))
    # pandas writes its index under an empty name
    names = [name.strip() or f"unnamed_{i}" for i, name in enumerate(names)]
    _check_names(file.name, names)
    return names, delimiter, number + 1


def _check_names(file: str, names: Sequence[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise DataError(f"{file}: the column {twice[0]!r} is there twice. Rename or delete one")


def _check_same_columns(first: str, names: Sequence[str], file: str, columns: pa.Table) -> None:
    missing = [name for name in names if name not in columns.column_names]
    extra = [name for name in columns.column_names if name not in names]
    if missing:
        raise DataError(
            f"{file}: the column {missing[0]!r} of {first} is missing. "
            "Give all files the same columns, or leave this one out of data.path"
        )
    if extra:
        raise DataError(
            f"{file}: has a column {extra[0]!r} that {first} lacks. "
            "Give all files the same columns, or leave this one out of data.path"
        )


def _mixed_as_text(tables: list[pa.Table]) -> list[pa.Table]:
    """Columns that are text in one file and something else in another, as text in all."""
    for i, name in enumerate(tables[0].column_names):
        types = {table.schema.field(i).type for table in tables} - {pa.null()}
        if len(types) > 1 and pa.string() in types:
            tables = [
                table.set_column(i, name, table.column(i).cast(pa.string())) for table in tables
            ]
    return tables


def _check_utf8(file: DataFile) -> None:
    """Raise DataError at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with file.open_text() as stream:
        while chunk := stream.read(1 << 20):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                offset += error.start - (len(error.object) - len(chunk))
                raise DataError(
                    f"{file.name}: not UTF-8: byte 0x{error.object[error.start]:02x} "
                    f"at offset {offset} (line {line}). Save the file as UTF-8"
                ) from None
            offset += len(chunk)
            line += text.count("\n")


def _malformed(file: DataFile, num_names: int, delimiter: str, error: Exception) -> DataError:
    """Name the first line whose number of values is not the header's, if that is what is wrong."""
    reader = csv.reader(file.lines(), delimiter=delimiter)
    for row in reader:
        if row and len(row) != num_names:
            return DataError(
                f"{file.name}, line {reader.line_num}: {len(row)} values, but the header names "
                f"{num_names} columns. Mend the line, or name every column in the header"
            )
    return DataError(f"{file.name}: not a CSV file: {brief_cause(error)}")


def _unreadable(name: str, error: Exception) -> EmberlineError:
    if name.startswith("s3://"):
        told = outage(name, error) if isinstance(error, OSError) else None
        if isinstance(told, StorageUnavailable):
            return told
        return DataError(
            f"{name}: cannot be read ({brief_cause(error)}). "
            "Check the bucket, your AWS credentials and AWS_ENDPOINT_URL"
        )
    if isinstance(error, PermissionError):
        return DataError(f"{name}: permission denied. Make it readable, or set data.path elsewhere")
    return DataError(
        f"{name}: cannot be read, damaged or not what its ending says: {brief_cause(error)}"
    )
