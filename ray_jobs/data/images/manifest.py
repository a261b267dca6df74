"""The manifest: every picture file that was found, and what became of it."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.fs import FileSystem

from ray_jobs.data.dataset import SPLITS
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage, resolve_filesystem

OK = "ok"
Text = NDArray[np.object_]  # of str


@dataclass(frozen=True)
class PictureRows:
    """The pictures of one split, in the manifest's order. Shape [N] throughout."""

    row_id: NDArray[np.int64]  # unique, stable across runs
    path: list[str]
    label: NDArray[np.int64]  # index into the classes
    group: NDArray[np.int64]  # near-duplicates share one

    def __len__(self) -> int:
        return len(self.path)

    def digest(self) -> str:
        """sha256 of the sorted row ids: two splits with the same digest hold the same rows."""
        return hashlib.sha256(np.sort(self.row_id).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Every picture file, ordered by source and name. Shape [N] throughout.

    Pictures that are left out have a reason as `status`, split "" and group -1.
    """

    path: Text  # absolute, or a URI
    source: NDArray[np.int64]  # index into data.sources, and behind them data.added
    source_class: Text  # the folder's name
    label: NDArray[np.int64]  # index into the classes; -1: none
    sha256: Text  # of the file's bytes; "" if they could not be read
    width: NDArray[np.int64]  # upright, px; 0 where unknown
    height: NDArray[np.int64]
    phash: NDArray[np.uint64]  # perceptual hash; 0 where there are no pixels
    status: Text  # "ok", or why the picture is left out
    converted: Text  # what was mended on decoding, with commas between
    detail: Text  # what there is to say about the status
    split: Text  # train, val, test or ""
    group: NDArray[np.int64]  # near-duplicates share one; -1: none
    row_id: NDArray[np.int64]  # of source and name

    def __len__(self) -> int:
        return len(self.path)

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        return self.status == OK

    def rows(self, split: str) -> PictureRows:
        """The pictures of a split."""
        assert split in SPLITS, split
        chosen = self.split == split
        return PictureRows(
            row_id=self.row_id[chosen],
            path=self.path[chosen].tolist(),
            label=self.label[chosen],
            group=self.group[chosen],
        )

    def digest(self) -> str:
        """sha256 of ids, labels, splits and contents of the usable pictures, sorted."""
        rows = zip(self.row_id, self.label, self.split, self.sha256, strict=True)
        chosen = sorted(row for row, usable in zip(rows, self.is_usable, strict=True) if usable)
        lines = (f"{row_id} {label} {split} {sha256}\n" for row_id, label, split, sha256 in chosen)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, storage: Storage, path: str) -> None:
        """Write as Parquet, a column for each field."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        with storage.open_output(path) as stream:
            pq.write_table(pa.table(columns, schema=_SCHEMA), stream, compression="zstd")

    @classmethod
    def read(cls, storage: Storage, path: str) -> Self:
        """Read back what `write` wrote.

        Raises:
            DataError: the file is not Parquet, or its columns are others.
        """
        content = pa.BufferReader(storage.read_buffer(path))
        try:
            table = pq.read_table(content)
            return cls(**_columns(table))
        except (ValueError, OSError) as error:  # what pyarrow raises for malformed files, too
            raise DataError(
                f"{storage.display(path)}: this is no manifest of pictures ({error}). "
                "Delete its folder and run again"
            ) from None


_TEXTS = ("path", "source_class", "sha256", "status", "converted", "detail", "split")
_TYPES = {**dict.fromkeys(_TEXTS, pa.string()), "phash": pa.uint64()}
_SCHEMA = pa.schema(
    [(field.name, _TYPES.get(field.name, pa.int64())) for field in fields(Manifest)]
)


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    if table.schema.names != _SCHEMA.names or table.schema.types != _SCHEMA.types:
        raise ValueError(f"columns {', '.join(table.schema.names)}")
    return {name: table[name].to_numpy() for name in _SCHEMA.names}


def load_manifest(storage: Storage, summary: DataSummary) -> Manifest:
    """The manifest of a prepared dataset.

    Raises:
        DataError: it is damaged, or not the one that the summary tells of.
    """
    assert summary.scan is not None, "not a dataset of pictures"
    manifest = Manifest.read(storage, summary.scan.manifest)
    if manifest.digest() != summary.digest:
        raise DataError(
            f"{storage.display(summary.scan.manifest)}: these are not the pictures that were "
            "split. Delete its folder and run again"
        )
    return manifest


def row_id(source: int, name: str) -> int:
    """Of a picture, by its source's index and its path below the source."""
    head = hashlib.sha256(f"{source}/{name}".encode()).digest()[:8]
    return int.from_bytes(head, "big") >> 1


def read_bytes(path: str) -> bytes:
    """The bytes of a local file or of one under a URI.

    Raises:
        OSError: it cannot be read.
        PreflightError: there is no way to reach the URI.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return Path(path).read_bytes()
    filesystem = _filesystem(f"{scheme}://{rest.partition('/')[0]}", os.getpid())
    with filesystem.open_input_stream(rest, compression=None) as stream:
        return stream.read()


@functools.cache
def _filesystem(root: str, _pid: int) -> FileSystem:
    """One connection a process: a forked worker must not share its parent's."""
    return resolve_filesystem(root)[0]
