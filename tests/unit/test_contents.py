"""What rows hold, whatever their ids: the keys by which test rows are looked for in train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.result import DataSummary
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.contents import content_digest, content_keys, num_common
from tests.conftest import SMALL_GCODE, SMALL_WASTE

DATA = {"fire": ("data.samples=1000",), "waste": SMALL_WASTE, "gcode": SMALL_GCODE}
SPLITS = ("train", "val", "test")


def prepared(workload: str, folder: Path, *overrides: str) -> tuple[Storage, DataSummary]:
    spec = load_spec(workload, storage=str(folder), overrides=[*DATA[workload], *overrides])
    run = Run(spec, "unused")
    summary = run.workload.prepare(
        spec, storage=run.storage, num_workers=1, emit=lambda *_, **__: None
    )
    return run.storage, summary


@pytest.mark.parametrize("workload", list(DATA))
def test_splits_have_nothing_in_common_and_stay_what_they_are(
    tmp_path: Path, workload: str
) -> None:
    storage, data = prepared(workload, tmp_path / "one")
    keys = {split: content_keys(workload, storage, data, split) for split in SPLITS}
    assert {split: len(found) for split, found in keys.items()} == {
        split: data.splits[split].num_rows for split in SPLITS
    }
    assert num_common(keys["test"], keys["train"]) == 0
    assert num_common(keys["test"], keys["test"]) == len(keys["test"])
    again = content_keys(workload, *prepared(workload, tmp_path / "two"), "test")
    assert content_digest(again) == content_digest(keys["test"])
    assert content_digest(keys["test"]) != content_digest(keys["val"])
    assert content_digest(keys["test"][::-1]) == content_digest(keys["test"])


def table_of(folder: Path, x: np.ndarray, y: np.ndarray) -> str:
    columns = {f"c{j}": column for j, column in enumerate(x.T)}
    group = np.arange(len(y)) // 20
    pq.write_table(pa.table({**columns, "fire": y, "group": group}), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def test_a_row_is_its_features_and_its_label(tmp_path: Path) -> None:
    """One row of test stands in train with the same label, and one with the other."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 4)).astype(np.float32), rng.integers(0, 2, 400)
    keys = ("data.samples=null", "data.label_column=fire", "data.group_column=group")

    def both(name: str) -> list[np.ndarray]:
        (tmp_path / name).mkdir()
        path = table_of(tmp_path / name, x, y)
        storage, data = prepared("fire", tmp_path / name, f"data.path={path}", *keys)
        rows = pq.read_table(storage.local(data.path) / "splits.parquet")
        splits.append(rows["split"].to_numpy())
        return [content_keys("fire", storage, data, split) for split in ("test", "train")]

    splits: list[np.ndarray] = []
    assert num_common(*both("apart")) == 0
    test, train = np.flatnonzero(splits[0] == 2), np.flatnonzero(splits[0] == 0)
    x[train[:2]] = x[test[:2]]
    y[train[:2]] = y[test[0]], 1 - y[test[1]]
    found = both("common")
    assert np.array_equal(*splits)  # the groups are where they were
    assert num_common(*found) == 1
