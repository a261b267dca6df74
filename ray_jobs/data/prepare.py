"""From a data spec to a prepared dataset on the storage: read or simulate, split, look for leaks, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS, Rows
from ray_jobs.data.duplicates import count_across_splits, find_repeats
from ray_jobs.data.leakage import find_leaks, refuse_leaks
from ray_jobs.data.prepared import (
    count_rows,
    load_rows,
    load_splits,
    read_shards,
    read_summary,
    shard_paths,
    write_splits,
    write_summary,
)
from ray_jobs.data.readings import Readings, read_readings
from ray_jobs.data.shards import Roles, shard_path, write_shard
from ray_jobs.data.splits import assign_splits
from ray_jobs.data.table import DataFile, content_digest, find_files
from ray_jobs.errors import DataError
from ray_jobs.result import ColumnLeak, DataSummary, LeakageReport, SplitSummary
from ray_jobs.spec import DataSpec
from ray_jobs.storage import Storage

__all__ = ["load_rows", "load_splits", "prepare"]

ROWS_PER_SHARD = 100_000
FEW_GROUPS = 10  # fewer independent groups make an interval over rows too narrow
FEW_CLASS_ROWS = 30  # fewer rows of a class in a split make its scores a guess
SHARE_TOLERANCE = 0.05  # how far a split's share may lie off the one asked for without a word
_MODULES = (
    "columns", "dataset", "duplicates", "leakage", "prepare", "prepared", "readings", "sessions", "shards",
    "splits", "table",
)  # fmt: skip


def prepare(
    data: DataSpec,
    *,
    workload: str,
    seed: int,
    storage: Storage,
    num_workers: int | None = None,
    emit: Callable[..., None],
) -> DataSummary:
    """Make the dataset that a spec asks for, or find it made already.

    The folder's name is a digest of all that decides its content. An attempt that was broken off lacks the summary
    and is written over, file by file; two processes may do that at once, for they write the same.

    Args:
        data: where the rows come from and how they are split.
        workload: begins the folder's name.
        seed: of the simulator, the splits, and the samples in which leaks are looked for.
        storage: takes `datasets/<workload>-<key>`.
        num_workers: processes that simulate; it changes no number.
        emit: the journal; receives `progress` (done, total, unit) and `warning` (message).

    Raises:
        DataError: the data cannot be used as the spec asks, or a column gives the label away.
    """
    files = find_files(data.path) if data.path else []
    folder = f"datasets/{workload}-{_key(data, seed, files)[:16]}"
    summary = read_summary(storage, folder)
    if summary is not None:
        num_rows = sum(split.num_rows for split in summary.splits.values())
        emit("progress", done=num_rows, total=num_rows, unit="rows", cached=True)
    else:
        if files:
            readings, shards = read_readings(files, data), None
        else:
            readings, shards = _simulate(data, seed, storage, folder, num_workers, emit)
        summary = _split_and_write(readings, shards, data, seed, storage, folder, emit)
    for message in summary.warnings:
        emit("warning", message=message)
    return summary


def _key(data: DataSpec, seed: int, files: Sequence[DataFile]) -> str:
    """Digest of everything that decides the rows and their splits."""
    from ray_jobs.data.simulator import generator_digest

    code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES)
    parts = {
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "content": content_digest(files) if files else generator_digest(),
        "code": hashlib.sha256(code).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _simulate(
    data: DataSpec,
    seed: int,
    storage: Storage,
    folder: str,
    num_workers: int | None,
    emit: Callable[..., None],
) -> tuple[Readings, list[str]]:
    """Simulated readings and the shards they stand in."""
    from ray_jobs.data.simulator import generate_shards

    assert data.generator is not None and data.samples is not None
    shards = generate_shards(
        storage,
        folder,
        generator=data.generator,
        num_samples=data.samples,
        seed=seed,
        num_workers=num_workers,
        progress=lambda done, total: emit("progress", done=done, total=total, unit="rows"),
    )
    roles, every = ..., np.ones(count_rows(storage, shards), bool)
    rows = read_shards(storage, shards, {"all": every})["all"]
    return Readings(), shards
