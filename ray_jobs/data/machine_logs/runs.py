"""Runs of a machine: sensor rows beside the G-code line in force, from the user's own logs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import MalformedGcode, parse_line
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.data.table import DataFile, Table, nearest, read_table
from ray_jobs.errors import DataError

_ENDING = re.compile(r"\.(?:csv|tsv|txt|parquet|pq)(?:\.\w+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Run:
    """One run. Shape [N rows] throughout."""

    name: str
    operation: str  # runs of one operation repeat its program
    columns: dict[str, NDArray[np.float64]]  # numeric ones; NaN: not measured
    gcode: list[str]  # the line in force; "": none

    def __len__(self) -> int:
        return len(self.gcode)


@dataclass(frozen=True)
class Logs:
    """What reading the logs has found."""

    runs: list[Run]  # by name
    not_numeric: dict[str, str] = field(default_factory=dict)  # column -> why it is no sensor
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    num_dropped: int = 0  # rows of the runs left out


def read_runs(files: Sequence[DataFile], data: MachineLogsSpec) -> Logs:
    """Read each file as a run; columns are known by their names, in any order and set.

    Raises:
        DataError: a file is damaged or has no G-code, a line is malformed, or no run is left.
    """
    logs = Logs([])
    dropped = 0
    for file in files:
        table = read_table([file])
        name = _ENDING.sub("", file.name)
        share = _empty_share(table.columns)
        if share > data.max_empty_share:
            dropped += table.columns.num_rows
            logs.warnings.append(
                f"run {name!r} is left out with its {table.columns.num_rows} rows: {share:.0%} of "
                f"its cells are empty (data.max_empty_share={data.max_empty_share:g})"
            )
            continue
        run = _run(table, name, data, logs)
        logs.runs.append(_resampled(run, table, data) if data.resample_s else run)
    if not logs.runs:
        raise DataError(
            f"{data.path}: no run is left: each has more than {data.max_empty_share:.0%} empty "
            "cells. Raise data.max_empty_share, or give data.path other logs"
        )
    return replace(logs, runs=_one_kind(logs), num_dropped=dropped)


def operation_of(name: str, pattern: str) -> str:
    """The operation that a run's name tells of; the whole name where the pattern does not fit."""
    match = re.fullmatch(pattern, name.rpartition("/")[2])
    return match["operation"] if match else name


def _empty_share(columns: pa.Table) -> float:
    num_empty = sum(column.null_count for column in columns.columns)
    return num_empty / max(1, columns.num_rows * columns.num_columns)


def _run(table: Table, name: str, data: MachineLogsSpec, logs: Logs) -> Run:
    columns: dict[str, NDArray[np.float64]] = {}
    num_rows = table.columns.num_rows
    for column in table.columns.column_names:
        if column in (data.gcode_column, data.time_column):
            continue
        kind = table.columns.schema.field(column).type
        if pa.types.is_null(kind):
            columns[column] = np.full(num_rows, np.nan)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            values = table.columns.column(column).cast(pa.float64()).to_numpy()
            columns[column] = _finite(values, column, table, data, logs)
        else:
            logs.not_numeric[column] = "a clock" if pa.types.is_temporal(kind) else "text"
    return Run(name, operation_of(name, data.operation_pattern), columns, _gcode(table, data, logs))


def _finite(
    values: NDArray[np.float64], column: str, table: Table, data: MachineLogsSpec, logs: Logs
) -> NDArray[np.float64]:
    infinite = np.flatnonzero(np.isinf(values))
    if not len(infinite):
        return values
    place = table.place(int(infinite[0]))
    if data.nonfinite == "refuse":
        raise DataError(
            f"{place}: column {column!r} is {values[infinite[0]]}. Mend the cell, or set "
            "data.nonfinite=mask to take such cells as not measured"
        )
    logs.notes.append(f"{place}: column {column!r}: {len(infinite)} infinite cells are masked")
    return np.where(np.isinf(values), np.nan, values)


def _gcode(table: Table, data: MachineLogsSpec, logs: Logs) -> list[str]:
    """The rows' lines; "" where there is none, or a malformed one is skipped."""
    names, file = table.columns.column_names, table.files[0].name
    if data.gcode_column not in names:
        raise DataError(
            f"{file}: no column {data.gcode_column!r} with the G-code in force"
            f"{nearest(data.gcode_column, names)}. Set data.gcode_column; if the file is no log, "
            "name the logs alone, such as data.path='logs/run_*.csv'"
        )
    lines = [
        (text or "").strip()
        for text in table.columns.column(data.gcode_column).cast(pa.string()).to_pylist()
    ]
    skipped: list[str] = []
    for row, text in enumerate(lines):
        try:
            if parse_line(text).is_empty:
                lines[row] = ""
        except MalformedGcode as error:
            fault = f"{table.place(row)}: malformed G-code {text!r}: {error}"
            if data.malformed == "refuse":
                raise DataError(
                    f"{fault}. Mend the line, or set data.malformed=skip to leave such rows "
                    "without a target"
                ) from None
            lines[row] = ""
            skipped.append(fault)
    if skipped:
        logs.warnings.append(
            f"{len(skipped)} rows of {file} have malformed G-code and no target; {skipped[0]}"
        )
    if not any(lines):
        raise DataError(
            f"{file}: no row has G-code in column {data.gcode_column!r}. Set data.gcode_column, or "
            "leave the file out of data.path"
        )
    return lines


def _resampled(run: Run, table: Table, data: MachineLogsSpec) -> Run:
    """The last row at or before each time of a uniform grid: nothing comes from later rows."""
    assert data.resample_s is not None
    assert data.time_column is not None
    time = _seconds(table, data.time_column)
    if np.any(np.diff(time) < 0):
        row = int(np.argmax(np.diff(time) < 0)) + 1
        raise DataError(
            f"{table.place(row)}: the time in column {data.time_column!r} goes back. Sort the "
            "rows, or leave data.resample_s out"
        )
    grid = np.arange(time[0], time[-1] + 1e-9, data.resample_s)
    held = np.searchsorted(time, grid + 1e-9, side="right") - 1
    columns = {name: values[held] for name, values in run.columns.items()}
    return replace(run, columns=columns, gcode=[run.gcode[i] for i in held])


def _seconds(table: Table, column: str) -> NDArray[np.float64]:
    names = table.columns.column_names
    if column not in names:
        raise DataError(
            f"{table.files[0].name}: no column {column!r}{nearest(column, names)}. Set "
            "data.time_column"
        )
    cells = table.columns.column(column)
    if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        seconds = cells.cast(pa.float64()).to_numpy()
    else:
        seconds = np.array([_clock(str(cell)) for cell in cells.to_pylist()])
        seconds = seconds + 86_400 * np.cumsum(np.r_[0, np.diff(seconds) < -43_200])  # midnight
    unknown = np.flatnonzero(~np.isfinite(seconds))
    if len(unknown):
        raise DataError(
            f"{table.place(int(unknown[0]))}: no time in column {column!r}; write seconds or "
            "h:mm:ss, or leave data.resample_s out"
        )
    return seconds


def _clock(text: str) -> float:
    match = re.fullmatch(r"(?:.*[ T])?(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else np.nan


def _one_kind(logs: Logs) -> list[Run]:
    """The runs by name, without columns that are text in any of them."""
    return [
        replace(run, columns={c: v for c, v in run.columns.items() if c not in logs.not_numeric})
        for run in sorted(logs.runs, key=lambda run: run.name)
    ]
