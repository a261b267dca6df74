"""From a data spec to a prepared dataset: read or simulate, split, look for leaks, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.added import AddedTable, extend, find_tables
from ray_jobs.data.dataset import SPLITS, Rows
from ray_jobs.data.duplicates import count_across_splits, find_repeats
from ray_jobs.data.leakage import REFUSED_AUC, find_leaks, refuse_leaks
from ray_jobs.data.prepared import (
    count_rows,
    load_rows,
    load_splits,
    read_shards,
    read_summary,
    shard_paths,
    shard_roles,
    write_splits,
    write_summary,
)
from ray_jobs.data.readings import Readings, read_readings
from ray_jobs.data.shards import Roles, shard_path, write_shard
from ray_jobs.data.spec import DataSpec
from ray_jobs.data.splits import assign_splits
from ray_jobs.data.table import DataFile, content_digest, find_files, nearest
from ray_jobs.errors import DataError
from ray_jobs.result import ColumnLeak, DataSummary, LeakageReport, SplitSummary
from ray_jobs.sections import SplitShares
from ray_jobs.storage import Storage

__all__ = ["load_rows", "load_splits", "prepare"]

ROWS_PER_SHARD = 100_000
FEW_GROUPS = 10  # fewer independent groups make an interval over rows too narrow
FEW_CLASS_ROWS = 30  # fewer rows of a class in a split make its scores a guess
SHARE_TOLERANCE = 0.05  # how far a split's share may lie off the one asked for without a word
_MODULES = (
    "added", "columns", "dataset", "duplicates", "leakage", "prepare", "prepared", "readings",
    "sessions", "shards", "splits", "table",
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

    The folder's name is a digest of all that decides its content. An attempt that was broken off
    lacks the summary and is written over, file by file; two processes may do that at once, for they
    write the same.

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
    added = find_tables(data.added)
    folder = f"datasets/{workload}-{_key(data, seed, files, added)[:16]}"
    summary = read_summary(storage, folder)
    if summary is not None:
        num_rows = sum(split.num_rows for split in summary.splits.values())
        emit("progress", done=num_rows, total=num_rows, unit="rows", cached=True)
    else:
        if files:
            readings, shards = read_readings(files, data), None
        else:
            readings, shards = _simulate(data, seed, storage, folder, num_workers, emit)
        summary = _split_and_write(readings, shards, added, data, seed, storage, folder, emit)
    for message in summary.warnings:
        emit("warning", message=message)
    return summary


def _key(data: DataSpec, seed: int, files: Sequence[DataFile], added: Sequence[AddedTable]) -> str:
    """Digest of everything that decides the rows and their splits."""
    if files:
        content = content_digest(files)
    else:
        from ray_jobs.data.simulator import generator_digest

        content = generator_digest()
    code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES)
    parts = {
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "content": content,
        "added": [table.digest() for table in added],
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

    assert data.generator is not None
    assert data.samples is not None
    shards = generate_shards(
        storage,
        folder,
        generator=data.generator,
        num_samples=data.samples,
        seed=seed,
        num_workers=num_workers,
        progress=lambda done, total: emit("progress", done=done, total=total, unit="rows"),
    )
    roles = shard_roles(storage, shards[0])
    every = np.ones(count_rows(storage, shards), bool)
    readings = Readings(
        rows=read_shards(storage, shards, {"all": every})["all"],
        label=roles.label,
        grouped_by=f"column {roles.group!r}" if roles.group else None,
        name_group=str if roles.group else None,
    )
    return readings, shards


def _split_and_write(
    readings: Readings,
    shards: list[str] | None,
    added: Sequence[AddedTable],
    data: DataSpec,
    seed: int,
    storage: Storage,
    folder: str,
    emit: Callable[..., None],
) -> DataSummary:
    """Split the rows, look for leaks, and write what is not written yet; the summary last."""
    rows = readings.rows
    if data.shuffle_labels:
        shuffled = np.random.default_rng(seed).permutation(rows.y)
        rows = replace(rows, y=shuffled, true_probability=None)
    repeats = find_repeats(rows, readings.name_group)
    split = assign_splits(
        rows.y, repeats.independent, data.split, seed=seed, grouped_by=readings.grouped_by
    )
    # From these rows alone: with further ones val and test must be filled in as before.
    train_x = rows.x[split == SPLITS.index("train")]
    num_imputed = _impute(rows, train_x)
    base, num_base = replace(readings, rows=rows), len(rows)
    whole = extend(
        base, split, repeats.independent, added, data, lambda more: _impute(more, train_x)
    )
    rows, split = whole.rows, whole.split
    parts = {name: rows.take(split == i) for i, name in enumerate(SPLITS)}
    leaks = _find_leaks(parts, data, seed)
    if shards is None:
        shards = _write_rows(storage, folder, rows, _own_roles(readings), 0, emit)
    elif whole.num_added:
        behind, roles = rows.take(slice(num_base, None)), shard_roles(storage, shards[0])
        shards += _write_rows(storage, folder, behind, roles, len(shards), emit)
    for stray in set(shard_paths(storage, folder)) - set(shards):
        storage.delete(stray)
    shuffled_y = rows.y if data.shuffle_labels else None
    write_splits(storage, folder, rows.row_id, split, whole.independent, shuffled_y)
    summary = DataSummary(
        source=f"table:{data.path}" if data.path else f"simulator:{data.generator}",
        path=folder,
        digest=_digest(rows, split),
        features=list(rows.features),
        label=readings.label,
        splits={
            name: SplitSummary(
                num_rows=len(part),
                num_groups=len(np.unique(whole.independent[split == i])),
                num_positive=int(part.y.sum()),
                digest=part.digest(),
            )
            for i, (name, part) in enumerate(parts.items())
        },
        grouped_by=readings.grouped_by,
        num_dropped=readings.num_dropped + whole.num_dropped,
        num_imputed=num_imputed + whole.num_imputed,
        num_added=whole.num_added,
        num_withheld=whole.num_withheld,
        leakage=LeakageReport(
            duplicates=repeats.report.model_copy(
                update={"num_across_splits": count_across_splits(rows.x, split)}
            ),
            columns=leaks,
            excluded_columns=readings.excluded,
            notes=[*readings.notes, *repeats.notes, *whole.notes],
        ),
        ceiling=_ceiling(parts),
    )
    summary = summary.model_copy(
        update={"warnings": [*readings.warnings, *_doubts(summary, data.split)]}
    )
    write_summary(storage, summary)
    return summary


def _find_leaks(parts: Mapping[str, Rows], data: DataSpec, seed: int) -> list[ColumnLeak]:
    features = parts["train"].features
    for name in data.allow_leaks:
        if name not in features:
            raise DataError(
                f"data.allow_leaks names {name!r}, which is no feature; there is "
                f"{', '.join(features)}{nearest(name, features)}"
            )
    leaks = find_leaks(parts["train"], parts["val"], allowed=data.allow_leaks, seed=seed)
    refuse_leaks(leaks)
    return leaks


def _impute(rows: Rows, train_x: NDArray[np.float32]) -> int:
    """Fill NaN cells in place with the median of train's known ones; returns how many."""
    is_missing = np.isnan(rows.x)
    for j in np.flatnonzero(is_missing.any(axis=0)):
        known = train_x[~np.isnan(train_x[:, j]), j]
        if not len(known):
            raise DataError(
                f"column {rows.features[j]!r} has no known value in train to impute from. "
                "Leave it out of data.feature_columns"
            )
        rows.x[is_missing[:, j], j] = np.median(known)
    return int(is_missing.sum())


def _own_roles(readings: Readings) -> Roles:
    """What the columns of a table's shards are for."""
    rows = readings.rows
    taken = {readings.label, *rows.features}
    id_name, group_name, probability_name = (
        _free_name(name, taken) for name in ("row_id", "group", "true_probability")
    )
    has_probability = rows.true_probability is not None
    return Roles(
        label=readings.label,
        features=rows.features,
        group=group_name if readings.name_group else None,
        id=id_name,
        true_probability=probability_name if has_probability else None,
    )


def _write_rows(
    storage: Storage, folder: str, rows: Rows, roles: Roles, first: int, emit: Callable[..., None]
) -> list[str]:
    """Write shards, numbered from `first`, that the `table` source reads with no option given;
    returns their paths."""
    roles = replace(roles, time=None)
    shards = []
    for index, start in enumerate(range(0, len(rows), ROWS_PER_SHARD), start=first):
        part = rows.take(slice(start, start + ROWS_PER_SHARD))
        columns: dict[str, NDArray[Any]] = dict(zip(rows.features, part.x.T, strict=True))
        columns[roles.label] = part.y
        if roles.id:
            columns[roles.id] = part.row_id
        if roles.group:
            columns[roles.group] = part.group
        if roles.true_probability and part.true_probability is not None:
            columns[roles.true_probability] = part.true_probability
        shards.append(shard_path(folder, index))
        write_shard(storage, shards[-1], columns, roles)
        emit("progress", done=start + len(part), total=len(rows), unit="rows")
    return shards


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _digest(rows: Rows, split: NDArray[np.int8]) -> str:
    """sha256 of ids, features, labels and splits of all rows."""
    digest = hashlib.sha256(json.dumps(rows.features).encode())
    for values, kind in ((rows.row_id, "<i8"), (rows.x, "<f4"), (rows.y, "i1"), (split, "i1")):
        digest.update(np.ascontiguousarray(values, dtype=kind).data)
    return digest.hexdigest()


def _ceiling(parts: Mapping[str, Rows]) -> dict[str, dict[str, float]]:
    """Beaten by luck alone: the AUC of the true probability, where the generator knows it."""
    from sklearn.metrics import roc_auc_score

    return {
        name: {"auc": float(roc_auc_score(part.y, part.true_probability))}
        for name, part in parts.items()
        if name != "train" and part.true_probability is not None
    }


def _doubts(summary: DataSummary, shares: SplitShares) -> Iterator[str]:
    """What a reader of the scores should know about the splits."""
    splits = summary.splits
    num_split = {name: split.num_rows for name, split in splits.items()}
    num_split["train"] -= summary.num_added  # which was not split
    num_rows = sum(num_split.values())
    num_groups = sum(split.num_groups for split in splits.values())
    merged = summary.leakage.duplicates.merged_groups
    if merged:
        sets = "; ".join(" = ".join(names) for names in merged[:5])
        columns = ", ".join(map(repr, summary.leakage.duplicates.differing_columns))
        yield (
            f"groups that repeat each other{f' in all but {columns}' if columns else ''} are kept "
            f"in one split: {sets}{f' and {len(merged) - 5} more' if len(merged) > 5 else ''}"
        )
    if summary.leakage.duplicates.num_across_splits:
        yield (
            f"{summary.leakage.duplicates.num_across_splits} rows of val and test equal a row of "
            "train in every feature"
        )
    for leak in summary.leakage.columns:
        if (
            leak.auc is not None and leak.auc >= REFUSED_AUC
        ):  # and kept: by the spec, or for want of rows to prove it
            yield (
                f"column {leak.column!r} alone tells the label (AUC {leak.auc:.4f} on validation); "
                "leave it out if it is the label in other words"
            )
    if num_groups < FEW_GROUPS:
        yield (
            f"only {num_groups} independent groups ({summary.grouped_by}), "
            f"{splits['test'].num_groups} of them in test: the test intervals do not tell how far "
            "the score would move with another group"
        )
    for name, split in splits.items():
        assert split.num_positive is not None, "of rows with a label that is 0 or 1"
        for label, count in ((0, split.num_rows - split.num_positive), (1, split.num_positive)):
            if count < FEW_CLASS_ROWS:
                yield (
                    f"{name} holds only {count} rows of class {label}: what is measured there is a "
                    "guess"
                )
    if any(
        abs(count / num_rows - getattr(shares, name)) > SHARE_TOLERANCE
        for name, count in num_split.items()
    ):
        found = " / ".join(f"{count / num_rows:.1%}" for count in num_split.values())
        wanted = " / ".join(f"{getattr(shares, name):.0%}" for name in splits)
        yield f"whole groups make the splits {found} of the rows, where {wanted} was asked for"
