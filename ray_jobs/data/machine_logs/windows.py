"""Windows over the rows of runs, each with one target, and how they are stored.

A prepared dataset is a folder: `run-00000.parquet`, ... hold the rows of each run (features as
measured, null where they were not), `windows.parquet` a row for each window, `frame.json` what all
of them share, and `dataset.json`, written last, the summary.

Shapes: N windows, T rows a window, F features, P parameters as in PARAMETERS, R rows, B of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.targets import RowTargets
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage

MAX_SCALED = 10.0  # standard deviations: a sensor that hardly moved in train must not drown others
UNSEEN = -1  # the number of a command that train does not have: no model can name it


class Frame(BaseModel):
    """What all windows of a dataset share; fitted on train alone where it is fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[str, ...]
    mean: tuple[float, ...]  # of the measured cells, in the column's own unit
    std: tuple[float, ...]
    commands: tuple[str, ...]  # in the order of their numbers
    window: int  # T
    runs: tuple[str, ...]
    operations: tuple[str, ...]  # of the runs

    def scaled(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows [R, F] scaled, 0 where not measured, and where they were measured [R, F]."""
        measured = ~np.isnan(rows)
        scaled = (rows - np.array(self.mean)) / np.array(self.std)
        scaled = np.clip(scaled, -MAX_SCALED, MAX_SCALED)
        return np.where(measured, scaled, 0.0).astype(np.float32), measured


@dataclass(frozen=True)
class WindowTable:
    """All windows of a dataset, by run and start. Shape [N] where not said."""

    run: NDArray[np.int64]
    start: NDArray[np.int64]  # first row, of its run
    target_row: NDArray[np.int64]  # of its run
    row_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.run)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> WindowTable:
        """The windows at `index`, in that order."""
        return WindowTable(
            self.run[index], self.start[index], self.target_row[index], self.row_id[index]
        )

    def followed_by(self, other: WindowTable, num_runs: int) -> WindowTable:
        """These windows, of `num_runs` runs, and those of further runs."""
        return WindowTable(
            np.r_[self.run, other.run + num_runs],
            np.r_[self.start, other.start],
            np.r_[self.target_row, other.target_row],
            np.r_[self.row_id, other.row_id],
        )


@dataclass(frozen=True)
class Windows:
    """The windows of one split; the rows are gathered batch by batch."""

    values: NDArray[np.float32]  # [R, F] scaled, 0 where not measured
    measured: NDArray[np.bool_]  # [R, F]
    start: NDArray[np.int64]  # [N] first row
    command: NDArray[np.int64]  # [N] index into the commands; UNSEEN: train does not have it
    param_type: NDArray[np.bool_]  # [N, P] which parameters the line sets
    param_value: NDArray[np.float64]  # [N, P] in machine units; NaN where not set
    run: NDArray[np.int64]  # [N] index into the frame's runs: the independent unit
    operation: NDArray[np.int64]  # [N] index into `operations`
    row_id: NDArray[np.int64]  # [N] unique, stable across runs
    row_command: NDArray[np.int64]  # [R] of every row; UNSEEN where there is no line, too
    row_value: NDArray[np.float64]  # [R, P] of every row; NaN where its line does not set it
    operations: tuple[str, ...]
    frame: Frame

    def __len__(self) -> int:
        return len(self.start)

    @property
    def features(self) -> tuple[str, ...]:
        return self.frame.features

    @property
    def commands(self) -> tuple[str, ...]:
        return self.frame.commands

    def batch(
        self, index: NDArray[np.int64] | slice
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scaled rows x [B, T, F] and the mask [B, T, F]: True where the cell is measured."""
        rows = self._rows(index)
        return self.values[rows], self.measured[rows]

    def row_targets(
        self, index: NDArray[np.int64] | slice
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Commands [B, T] and values [B, T, P] of every row of windows."""
        rows = self._rows(index)
        return self.row_command[rows], self.row_value[rows]

    def _rows(self, index: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        return self.start[index][:, None] + np.arange(self.frame.window)

    def digest(self) -> str:
        """sha256 of the sorted row ids: two splits with the same digest hold the same windows."""
        return row_digest(self.row_id)


def row_digest(row_id: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.sort(row_id).astype("<i8").tobytes()).hexdigest()


def cut_windows(
    targets: Sequence[RowTargets],
    names: Sequence[str],
    *,
    window: int,
    stride: int,
    most_frequent: bool,
) -> WindowTable:
    """Whole windows of each run that have a target.

    Args:
        targets: of each run's rows.
        names: of the runs.
        window: rows of each.
        stride: rows from one to the next.
        most_frequent: the target is the line that fills most of the window (of equals the later
            one), not the one in force at the last row.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {"run": [], "start": [], "row": [], "id": []}
    for index, (of_run, name) in enumerate(zip(targets, names, strict=True)):
        start = np.arange(0, len(of_run.line) - window + 1, stride)
        row = start + window - 1
        if most_frequent:
            row = np.array([s + _most_frequent(of_run.line[s : s + window]) for s in start], int)
        has_target = np.array([of_run.command[r] is not None for r in row], bool)
        start, row = start[has_target], row[has_target]
        parts["run"].append(np.full(len(start), index))
        parts["start"].append(start)
        parts["row"].append(row)
        parts["id"].append(_row_ids(name, start))
    run, start, row, row_id = (np.concatenate(part).astype(np.int64) for part in parts.values())
    return WindowTable(run, start, row, row_id)


def _most_frequent(line: NDArray[np.int64]) -> int:
    """The last row of the most frequent line of a window; the last row if it has no line."""
    known = line[line >= 0]
    if not len(known):
        return len(line) - 1
    counts = np.bincount(known)
    return int(np.flatnonzero((line >= 0) & (counts[line] == counts.max()))[-1])


def _row_ids(name: str, start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of windows, by their run's name and their first row."""
    head = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return (head & ~0xFFFFFFFF) + start


def write_run(
    storage: Storage,
    folder: str,
    index: int,
    rows: NDArray[np.float64],
    targets: RowTargets,
    features: Sequence[str],
) -> None:
    """Write a run's rows [R, F] and their targets."""
    columns: dict[str, pa.Array] = {
        f"x{j}": pa.array(rows[:, j].astype(np.float32), from_pandas=True)
        for j in range(len(features))
    }
    columns["command"] = pa.array(targets.command, pa.string())
    for p, name in enumerate(PARAMETERS):
        columns[name] = pa.array(targets.values[:, p], from_pandas=True)
    _write(storage, run_path(folder, index), columns)


def write_windows(
    storage: Storage, folder: str, table: WindowTable, split: NDArray[np.int8], frame: Frame
) -> None:
    """Write the windows with their splits [N], and the frame."""
    columns = {name: pa.array(getattr(table, name)) for name in _WINDOW_COLUMNS}
    _write(storage, f"{folder}/windows.parquet", {**columns, "split": pa.array(split)})
    storage.write_text(f"{folder}/frame.json", frame.model_dump_json(indent=2))


_WINDOW_COLUMNS = ("run", "start", "target_row", "row_id")


def run_path(folder: str, index: int) -> str:
    return f"{folder}/run-{index:05d}.parquet"


def load_frame(storage: Storage, summary: DataSummary) -> Frame:
    """What all windows of a dataset share: features and their scale, commands, runs.

    Raises:
        DataError: it is damaged.
    """
    path = f"{summary.path}/frame.json"
    try:
        return Frame.model_validate_json(storage.read_bytes(path))
    except (OSError, ValidationError):
        raise _damaged(storage, path) from None


def load_windows(storage: Storage, summary: DataSummary, split: str) -> Windows:
    """The windows of one split; the rows of other splits' runs are not read.

    Raises:
        DataError: the dataset's files are damaged.
    """
    assert split in SPLITS, split
    frame = load_frame(storage, summary)
    table = _read(storage, f"{summary.path}/windows.parquet")
    chosen = table["split"] == SPLITS.index(split)
    run, start, target_row, row_id = (table[name][chosen] for name in _WINDOW_COLUMNS)
    if row_digest(row_id) != summary.splits[split].digest:
        raise _damaged(storage, f"{summary.path}/windows.parquet")
    number = {command: i for i, command in enumerate(frame.commands)}
    values, measured, row_command, row_value, offset = [], [], [], [], 0
    first = np.zeros(len(run), np.int64)
    for index in np.unique(run).tolist():
        rows = _read(storage, run_path(summary.path, index))
        x = np.column_stack([rows[f"x{j}"] for j in range(len(frame.features))])
        scaled, known = frame.scaled(x.astype(np.float64))
        values.append(scaled)
        measured.append(known)
        row_command.append(np.array([number.get(c, UNSEEN) for c in rows["command"]], np.int64))
        row_value.append(np.column_stack([rows[name] for name in PARAMETERS]))
        first[run == index] = offset
        offset += len(x)
    commands, param_values = np.concatenate(row_command), np.concatenate(row_value)
    param_value = param_values[first + target_row]
    operations = tuple(sorted(set(frame.operations)))
    of_run_index = np.array([operations.index(name) for name in frame.operations], np.int64)
    return Windows(
        values=np.concatenate(values),
        measured=np.concatenate(measured),
        start=first + start,
        command=commands[first + target_row],
        param_type=~np.isnan(param_value),
        param_value=param_value,
        run=run,
        operation=of_run_index[run],
        row_id=row_id,
        row_command=commands,
        row_value=param_values,
        operations=operations,
        frame=frame,
    )


def _write(storage: Storage, path: str, columns: dict[str, pa.Array]) -> None:
    with storage.open_output(path) as stream:
        pq.write_table(pa.table(columns), stream, compression="zstd")


def _read(storage: Storage, path: str) -> dict[str, NDArray[Any]]:
    try:
        table = pq.read_table(pa.BufferReader(storage.read_buffer(path)))
    except (OSError, pa.ArrowInvalid):
        raise _damaged(storage, path) from None
    return {name: table[name].to_numpy() for name in table.column_names}


def _damaged(storage: Storage, path: str) -> DataError:
    return DataError(
        f"{storage.display(path)}: damaged, or not what was prepared. Delete its folder and run "
        "again"
    )
