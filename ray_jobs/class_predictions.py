"""Predictions of many classes: what the model said of every row of a split, as one file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_jobs.errors import DataError
from ray_jobs.multiclass import check_labels, check_probabilities
from ray_jobs.storage import Storage

_CLASSES_KEY = b"classes"
_WHOLE = ("row_id", "label", "group")


@dataclass(frozen=True)
class ClassPredictions:
    """P(class) of every row of one split: N rows in one order, C classes.

    Raises:
        ValueError: the arrays differ in length, hold a class that is not named or what is no
            distribution, or a class is named twice.
    """

    row_id: NDArray[np.int64]  # [N]
    y: NDArray[np.int64]  # [N], 0..C-1
    group: NDArray[np.int64]  # [N]
    p: NDArray[np.float64]  # [N, C], rows sum to 1
    classes: tuple[str, ...]  # in the order of their numbers

    def __post_init__(self) -> None:
        columns = {"row_id": self.row_id, "label": self.y, "group": self.group, "p": self.p}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of predictions differ in length: {lengths}")
        if self.p.ndim != 2 or self.p.shape[1] != len(self.classes):
            raise ValueError(
                f"p must be [N, {len(self.classes)}] as classes, but is {self.p.shape}"
            )
        twice = [name for i, name in enumerate(self.classes) if name in self.classes[:i]]
        if twice:
            raise ValueError(f"the class {twice[0]!r} is named twice")
        check_probabilities(self.p)
        check_labels(self.y, len(self.classes))

    def __len__(self) -> int:
        return len(self.y)

    def write(self, storage: Storage, path: str) -> None:
        """Write as Parquet: columns row_id, label, group and p, a list of C; the classes' names
        stand in the schema's metadata."""
        flat = pa.array(np.ascontiguousarray(self.p, np.float64).reshape(-1))
        columns = {
            "row_id": pa.array(self.row_id, pa.int64()),
            "label": pa.array(self.y, pa.int64()),
            "group": pa.array(self.group, pa.int64()),
            "p": pa.FixedSizeListArray.from_arrays(flat, len(self.classes)),
        }
        table = pa.table(columns).replace_schema_metadata({_CLASSES_KEY: json.dumps(self.classes)})
        with storage.open_output(path) as stream:
            pq.write_table(table, stream, compression="zstd")

    @classmethod
    def read(cls, storage: Storage, path: str) -> Self:
        """Read back what `write` wrote.

        Raises:
            DataError: the file is not Parquet, lacks a column or the classes' names, or holds a
                column of another type or with values that are no classes or probabilities.
        """
        content = pa.BufferReader(storage.read_buffer(path))
        try:
            return cls._parse(pq.read_table(content))
        except (ValueError, OSError) as error:  # what pyarrow raises for malformed files, too
            raise DataError(
                f"{storage.display(path)}: these are not predictions of classes ({error}). "
                "Delete the file and evaluate the run again."
            ) from None

    @classmethod
    def _parse(cls, table: pa.Table) -> Self:
        classes = _parse_classes(table.schema.metadata or {})
        types = {**dict.fromkeys(_WHOLE, pa.int64()), "p": pa.list_(pa.float64(), len(classes))}
        for name, dtype in types.items():
            found = table.schema.field(name).type if name in table.column_names else "missing"
            if found != dtype:
                raise ValueError(f"column {name!r} should be {dtype}, but is {found}")
            if table[name].null_count:
                raise ValueError(f"column {name!r} has rows without a value")
        row_id, y, group = (table[name].to_numpy() for name in _WHOLE)
        p = table["p"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return cls(row_id=row_id, y=y, group=group, p=p.reshape(-1, len(classes)), classes=classes)


def _parse_classes(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    classes = json.loads(metadata.get(_CLASSES_KEY, b"null"))
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("the schema does not name the classes")
    return tuple(classes)
