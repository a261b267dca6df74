"""Predictions: what the ensemble and its members said about every row of a split, as one Parquet
file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_jobs.errors import DataError
from ray_jobs.storage import Storage

_MEMBER_PREFIX = "member."
_TYPES = {
    "row_id": pa.int64(),
    "label": pa.int8(),
    "group": pa.int64(),
    "ensemble": pa.float64(),
}


@dataclass(frozen=True)
class Predictions:
    """P(label = 1) of every row of one split. Shape [N] throughout, in one row order.

    Raises:
        ValueError: the arrays differ in length.
    """

    row_id: NDArray[np.int64]
    y: NDArray[np.int8]  # 0 or 1
    group: NDArray[np.int64]
    ensemble: NDArray[np.float64]
    members: dict[str, NDArray[np.float64]]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self._columns().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of predictions differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.y)

    def _columns(self) -> dict[str, NDArray]:
        members = {f"{_MEMBER_PREFIX}{name}": scores for name, scores in self.members.items()}
        return {
            "row_id": self.row_id,
            "label": self.y,
            "group": self.group,
            "ensemble": self.ensemble,
            **members,
        }

    def write(self, storage: Storage, path: str) -> None:
        """Write as Parquet: columns row_id, label, group, ensemble and one `member.<name>` a
        member."""
        columns = {
            name: pa.array(values, type=_TYPES.get(name, pa.float64()))
            for name, values in self._columns().items()
        }
        with storage.open_output(path) as stream:
            pq.write_table(pa.table(columns), stream, compression="zstd")

    @classmethod
    def read(cls, storage: Storage, path: str) -> Self:
        """Read back what `write` wrote.

        Raises:
            DataError: the file is not Parquet, lacks a column, or holds one of another type.
        """
        where = storage.display(path)
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
        except pa.ArrowInvalid:
            raise DataError(
                f"{where}: is not a Parquet file. Delete it and evaluate the run again."
            ) from None
        members = [name for name in table.column_names if name.startswith(_MEMBER_PREFIX)]
        for name, dtype in {**_TYPES, **dict.fromkeys(members, pa.float64())}.items():
            found = table.schema.field(name).type if name in table.column_names else "missing"
            if found != dtype:
                raise DataError(
                    f"{where}: column {name!r} should be {dtype}, but is {found}. "
                    "Delete the file and evaluate the run again."
                )
        return cls(
            row_id=table["row_id"].to_numpy(),
            y=table["label"].to_numpy(),
            group=table["group"].to_numpy(),
            ensemble=table["ensemble"].to_numpy(),
            members={name.removeprefix(_MEMBER_PREFIX): table[name].to_numpy() for name in members},
        )
