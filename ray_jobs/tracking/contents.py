"""What the rows of a prepared dataset hold, as keys: rows with equal features and label have equal
ones, whatever their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage

Keys = NDArray[Any]  # [N], numbers or texts
_LABEL = np.uint64(0x9E3779B97F4A7C15)  # odd, so that each label moves a key elsewhere


def content_keys(workload: str, storage: Storage, data: DataSummary, split: str) -> Keys:
    """A key for each row of a split, in no particular order.

    Raises:
        DataError: the dataset's files are damaged.
    """
    return _KEYS[workload](storage, data, split)


def content_digest(keys: Keys) -> str:
    """sha256 of the sorted keys: two splits with the same digest hold the same content."""
    return hashlib.sha256(np.sort(keys).tobytes()).hexdigest()


def num_common(keys: Keys, others: Keys) -> int:
    """How many of `keys` stand among `others`."""
    return int(np.isin(keys, others).sum())


def _readings(storage: Storage, data: DataSummary, split: str) -> Keys:
    from ray_jobs.data.duplicates import row_keys
    from ray_jobs.data.prepare import load_rows

    rows = load_rows(storage, data, split)
    return row_keys(rows.x) + (rows.y.astype(np.uint64) + np.uint64(1)) * _LABEL


def _pictures(storage: Storage, data: DataSummary, split: str) -> Keys:
    from ray_jobs.data.images.manifest import load_manifest

    manifest = load_manifest(storage, data)
    chosen = manifest.split == split
    pairs = zip(manifest.sha256[chosen], manifest.label[chosen], strict=True)
    return np.array([f"{sha256} {label}" for sha256, label in pairs], np.str_)


def _windows(storage: Storage, data: DataSummary, split: str) -> Keys:
    """Sensors as they were measured, for what scales them comes from train; the numbers of commands
    do, too."""
    import pyarrow.parquet as pq

    from ray_jobs.data.machine_logs.windows import load_windows, run_path

    windows = load_windows(storage, data, split)
    columns = [f"x{j}" for j in range(len(windows.features))]
    runs = []
    for index in np.unique(windows.run).tolist():
        with storage.open_input(run_path(data.path, index)) as file:
            table = pq.ParquetFile(file).read(columns=columns)
        runs.append(np.column_stack([table[name].to_numpy() for name in columns]))
    x = np.concatenate(runs).astype(np.float64)
    x[np.isnan(x)] = np.nan  # of which there are many
    keys = []
    for start, values in zip(windows.start, windows.param_value, strict=True):
        line = np.where(np.isnan(values), np.nan, values)
        content = x[start : start + windows.frame.window].tobytes() + line.tobytes()
        keys.append(hashlib.sha256(content).hexdigest())
    return np.array(keys, np.str_)


_KEYS: dict[str, Callable[[Storage, DataSummary, str], Keys]] = {
    "fire": _readings,
    "waste": _pictures,
    "gcode": _windows,
}
