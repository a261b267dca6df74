"""Predictions: what the ensemble and its members said of every row of a split, as one file."""

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
        ValueError: the arrays differ in length, or hold what is no label or no probability.
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
        if not ((self.y == 0) | (self.y == 1)).all():
            raise ValueError("column 'label' must hold 0 and 1 only")
        for name, scores in {"ensemble": self.ensemble, **self.members}.items():
            if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails both
                raise ValueError(f"the probabilities of {name!r} must be between 0 and 1")

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
        """Write as Parquet: columns row_id, label, group, ensemble, `member.<name>` for each."""
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
            DataError: the file is not Parquet, lacks a column, or holds one of another type or
                with values that are no labels or probabilities.
        """
        content = pa.BufferReader(storage.read_buffer(path))
        try:
            return cls._parse(pq.read_table(content))
        except (ValueError, OSError) as error:  # what pyarrow raises for malformed files, too
            raise DataError(
                f"{storage.display(path)}: these are not predictions ({error}). "
                "Delete the file and evaluate the run again."
            ) from None

    @classmethod
    def _parse(cls, table: pa.Table) -> Self:
        members = [name for name in table.column_names if name.startswith(_MEMBER_PREFIX)]
        for name, dtype in {**_TYPES, **dict.fromkeys(members, pa.float64())}.items():
            found = table.schema.field(name).type if name in table.column_names else "missing"
            if found != dtype:
                raise ValueError(f"column {name!r} should be {dtype}, but is {found}")
        return cls(
            row_id=table["row_id"].to_numpy(),
            y=table["label"].to_numpy(),
            group=table["group"].to_numpy(),
            ensemble=table["ensemble"].to_numpy(),
            members={name.removeprefix(_MEMBER_PREFIX): table[name].to_numpy() for name in members},
        )
