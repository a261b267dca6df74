"""A prepared dataset on the storage: a folder of readings, their splits, and a summary.

`rows-*.parquet` are the readings. `splits.parquet` holds, row by row in the same order, each row's
id, split and independent group, and its label if labels were shuffled. `dataset.json` is the
summary and is written last: a folder without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS, Rows
from ray_jobs.data.shards import Roles, read_roles
from ray_jobs.data.table import SPLITS_FILE
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage

SUMMARY_FILE = "dataset.json"


def load_rows(storage: Storage, summary: DataSummary, split: str) -> Rows:
    """The rows of one split, ordered by group and then by time.

    Raises:
        DataError: the dataset's files are damaged.
    """
    return load_splits(storage, summary, (split,))[split]


def load_splits(
    storage: Storage, summary: DataSummary, names: Sequence[str] = ("train", "val")
) -> dict[str, Rows]:
    """The rows of the splits named, and of no other: whoever wants test has to say so.

    Raises:
        DataError: the dataset's files are damaged.
    """
    assert set(names) <= set(SPLITS), names
    with storage.open_input(_splits_path(summary.path)) as file:
        assigned = pq.ParquetFile(file).read()
    split = assigned.column("split").to_numpy()
    masks = {name: split == SPLITS.index(name) for name in names}
    shards = shard_paths(storage, summary.path)
    is_whole = count_rows(storage, shards) == len(split)
    loaded = read_shards(storage, shards, masks) if is_whole else {}
    for name, rows in loaded.items():
        is_whole &= rows.digest() == summary.splits[name].digest
        if "label" in assigned.column_names:
            y = assigned.column("label").to_numpy()[masks[name]]
            rows = replace(rows, y=y, true_probability=None)  # noqa: PLW2901
        cluster = assigned.column("cluster").to_numpy()[masks[name]]
        loaded[name] = _in_group_order(replace(rows, cluster=cluster))
    if not is_whole:
        raise DataError(
            f"{storage.display(summary.path)}: the dataset's rows are not those it was split into. "
            "Delete the folder and run again"
        )
    return loaded


def write_splits(
    storage: Storage,
    folder: str,
    row_id: NDArray[np.int64],
    split: NDArray[np.int8],
    cluster: NDArray[np.int64],
    shuffled_y: NDArray[np.int8] | None,
) -> None:
    """Store each row's split. All arrays are of shape [N], in the order of the folder's shards."""
    columns: dict[str, NDArray[Any]] = {"row_id": row_id, "split": split, "cluster": cluster}
    if shuffled_y is not None:
        columns["label"] = shuffled_y
    with storage.open_output(f"{folder}/{SPLITS_FILE}") as stream:
        pq.write_table(pa.table(columns), stream, compression="zstd")


def read_summary(storage: Storage, folder: str) -> DataSummary | None:
    """The summary of a finished dataset; None if it is not there or not finished."""
    path = f"{folder}/{SUMMARY_FILE}"
    if not storage.exists(path):
        return None
    return DataSummary.model_validate_json(storage.read_bytes(path))


def write_summary(storage: Storage, summary: DataSummary) -> None:
    """Declare a dataset finished."""
    storage.write_text(f"{summary.path}/{SUMMARY_FILE}", summary.model_dump_json(indent=2))


def shard_paths(storage: Storage, folder: str) -> list[str]:
    """The folder's shards, in order."""
    names = storage.list(folder)
    return [n for n in names if n.endswith(".parquet") and not n.endswith(f"/{SPLITS_FILE}")]


def shard_roles(storage: Storage, shard: str) -> Roles:
    """What a shard says its columns are for."""
    with storage.open_input(shard) as file:
        roles = read_roles(pq.ParquetFile(file).schema_arrow)
    assert roles is not None, f"{shard} declares no roles"
    return roles


def count_rows(storage: Storage, shards: Sequence[str]) -> int:
    num_rows = 0
    for shard in shards:
        with storage.open_input(shard) as file:
            num_rows += pq.ParquetFile(file).metadata.num_rows
    return num_rows


def read_shards(
    storage: Storage, shards: Sequence[str], masks: Mapping[str, NDArray[np.bool_]]
) -> dict[str, Rows]:
    """The rows that each mask over all shards' rows [N] selects; one shard is held beside them."""
    roles = shard_roles(storage, shards[0])
    others = (roles.label, roles.group, roles.id, roles.true_probability)
    selected = {name: _empty(int(mask.sum()), roles) for name, mask in masks.items()}
    filled = dict.fromkeys(masks, 0)
    offset = 0
    for shard in shards:
        with storage.open_input(shard) as file:
            wanted = [*roles.features, *(name for name in others if name)]
            table = pq.ParquetFile(file).read(columns=wanted)
        for name, mask in masks.items():
            chosen = np.flatnonzero(mask[offset : offset + table.num_rows])
            place = slice(filled[name], filled[name] + len(chosen))
            _fill(selected[name], place, table, roles, chosen, offset)
            filled[name] = place.stop
        offset += table.num_rows
    return selected


def _empty(num_rows: int, roles: Roles) -> Rows:
    return Rows(
        x=np.empty((num_rows, len(roles.features)), np.float32),
        y=np.empty(num_rows, np.int8),
        group=np.empty(num_rows, np.int64),
        row_id=np.empty(num_rows, np.int64),
        features=roles.features,
        true_probability=np.empty(num_rows, np.float32) if roles.true_probability else None,
    )


def _fill(
    rows: Rows,
    place: slice,
    table: pa.Table,
    roles: Roles,
    chosen: NDArray[np.int64],
    offset: int,
) -> None:
    """Copy the chosen rows of a shard that begins at row `offset` to their place."""
    targets: list[tuple[NDArray[Any], str]] = [(rows.y[place], roles.label)]
    targets += [(rows.x[place, j], feature) for j, feature in enumerate(roles.features)]
    if rows.true_probability is not None and roles.true_probability:
        targets.append((rows.true_probability[place], roles.true_probability))
    rows.group[place] = rows.row_id[place] = offset + chosen  # unless the shard knows better
    targets += [(rows.group[place], roles.group)] if roles.group else []
    targets += [(rows.row_id[place], roles.id)] if roles.id else []
    for target, name in targets:
        target[:] = table.column(name).to_numpy()[chosen]


def _in_group_order(rows: Rows) -> Rows:
    """Shards hold each group in time order, though not always one group after the other."""
    if np.all(rows.group[1:] >= rows.group[:-1]):
        return rows
    return rows.take(np.argsort(rows.group, kind="stable"))


def _splits_path(folder: str) -> str:
    return f"{folder}/{SPLITS_FILE}"
