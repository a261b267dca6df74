"""Predictions of G-code: what the model said of every window of a split, as one file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.errors import DataError
from ray_jobs.gcode_metrics import GcodeLines
from ray_jobs.storage import Storage

_COMMANDS_KEY = b"commands"
_P = len(PARAMETERS)
_TYPES = {
    "row_id": pa.int64(),
    "group": pa.int64(),
    "operation": pa.string(),
    "command": pa.int64(),
    "param_type": pa.list_(pa.bool_(), _P),
    "param_value": pa.list_(pa.float64(), _P),
    "predicted_command": pa.int64(),
    "predicted_param_type": pa.list_(pa.bool_(), _P),
    "predicted_param_value": pa.list_(pa.float64(), _P),
}


@dataclass(frozen=True)
class GcodePredictions:
    """True and predicted lines of every window of one split: N windows in one order.

    Raises:
        ValueError: the arrays differ in length, a command is not one of `commands` (a true one may
            be below 0: train does not have it), or a value that is needed is not finite.
    """

    row_id: NDArray[np.int64]  # [N]
    group: NDArray[np.int64]  # [N] the run
    operation: NDArray[np.object_]  # [N] names
    true: GcodeLines
    predicted: GcodeLines
    commands: tuple[str, ...]  # in the order of their numbers

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("row_id", "group", "operation", "true", "predicted")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of predictions differ in length: {lengths}")
        for command, lowest in ((self.true.command, -1), (self.predicted.command, 0)):
            if not ((command >= lowest) & (command < len(self.commands))).all():
                raise ValueError(f"a command is not in {lowest}..{len(self.commands) - 1}")
        if not np.isfinite(self.predicted.param_value).all():
            raise ValueError("a predicted value is not finite")
        if (np.isnan(self.true.param_value) == self.true.param_type).any():
            raise ValueError("param_value must be there where param_type says so, and only there")

    def __len__(self) -> int:
        return len(self.row_id)

    def write(self, storage: Storage, path: str) -> None:
        """Write as Parquet; those of PARAMETERS are lists in that order, and the commands' names
        stand in the schema's metadata."""
        said = {f"predicted_{name}": value for name, value in vars(self.predicted).items()}
        columns: dict[str, Any] = {
            "row_id": self.row_id,
            "group": self.group,
            "operation": self.operation,
            **vars(self.true),
            **said,
        }
        arrays = [_array(columns[name], dtype) for name, dtype in _TYPES.items()]
        table = pa.table(arrays, schema=pa.schema(_TYPES.items()))
        table = table.replace_schema_metadata({_COMMANDS_KEY: json.dumps(self.commands)})
        with storage.open_output(path) as stream:
            pq.write_table(table, stream, compression="zstd")

    @classmethod
    def read(cls, storage: Storage, path: str) -> Self:
        """Read back what `write` wrote.

        Raises:
            DataError: the file is not Parquet, lacks a column or the commands' names, or holds what
                no prediction can be.
        """
        content = pa.BufferReader(storage.read_buffer(path))
        try:
            return cls._parse(pq.read_table(content))
        except (ValueError, OSError) as error:  # what pyarrow raises for malformed files, too
            raise DataError(
                f"{storage.display(path)}: these are not predictions of G-code ({error}). "
                "Delete the file and evaluate the run again."
            ) from None

    @classmethod
    def _parse(cls, table: pa.Table) -> Self:
        commands = json.loads((table.schema.metadata or {}).get(_COMMANDS_KEY, b"null"))
        if not isinstance(commands, list) or not all(isinstance(name, str) for name in commands):
            raise ValueError("the schema does not name the commands")
        columns: dict[str, NDArray[Any]] = {}
        for name, dtype in _TYPES.items():
            found = table.schema.field(name).type if name in table.column_names else "missing"
            if found != dtype:
                raise ValueError(f"column {name!r} should be {dtype}, but is {found}")
            column = table[name].combine_chunks()
            if column.null_count:
                raise ValueError(f"column {name!r} has windows without a value")
            is_list = pa.types.is_fixed_size_list(dtype)
            flat = column.flatten() if is_list else column
            values = flat.to_numpy(zero_copy_only=False)
            columns[name] = values.reshape(-1, _P) if is_list else values
        true, predicted = (
            GcodeLines(*(columns[f"{prefix}{name}"] for name in GcodeLines.__dataclass_fields__))
            for prefix in ("", "predicted_")
        )
        return cls(
            columns["row_id"],
            columns["group"],
            columns["operation"],
            true,
            predicted,
            tuple(commands),
        )


def _array(values: NDArray[Any], dtype: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(dtype):
        return pa.array(values, dtype)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), dtype.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, _P)
