"""Shards: Parquet files that say themselves what each column is for.

A folder of `rows-00000.parquet`, `rows-00001.parquet`, ... holds a dataset of any size; nothing
ever holds it whole while it is written. Whatever Emberline writes, the `table` source can read back
with no option given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_jobs.storage import Storage

_METADATA_KEY = b"emberline.roles"


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are for. Columns that are not named here are carried and never
    learned from."""

    label: str
    features: tuple[str, ...]
    group: str | None = None
    time: str | None = None
    id: str | None = None
    true_probability: str | None = None  # P(label) where a generator knows it


def shard_path(folder: str, index: int) -> str:
    """Of the shard with this index; folder "" is the storage root."""
    return f"{folder}/rows-{index:05d}.parquet".removeprefix("/")


def write_shard(
    storage: Storage, path: str, columns: Mapping[str, NDArray[np.generic] | pa.Array], roles: Roles
) -> None:
    """Write one shard, atomically. The same columns give the same bytes."""
    schema_metadata = {_METADATA_KEY: json.dumps(asdict(roles)).encode()}
    table = pa.table(dict(columns)).replace_schema_metadata(schema_metadata)
    with storage.open_output(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def read_roles(schema: pa.Schema) -> Roles | None:
    """The roles a shard declares; None for a Parquet file of somebody else's."""
    text = (schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        return None
    fields = json.loads(text)
    return Roles(**{**fields, "features": tuple(fields["features"])})
