"""Added logs: runs for train alone. The windows of val and test stay as they are without them.

Shapes: N windows, R rows of a run, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.added import AddedTable, naming_added
from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.duplicates import ROUNDING, Keys, column_hash, row_keys
from ray_jobs.data.machine_logs.runs import Run, read_runs
from ray_jobs.data.machine_logs.source import Source, cut
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.errors import DataError

SAME = 0.5  # of the rows of a run, or of a window, that another has: the same recording
_TRAIN = SPLITS.index("train")


def extend(base: Source, tables: Sequence[AddedTable], data: MachineLogsSpec) -> Source:
    """The runs and windows of `base`, whose splits are made, and those added, all in train.

    Left out are windows of which val or test has half the rows; those of runs that repeat one that
    stands there, if only but for one column or for rounding; and, with data.split=by_operation,
    those of operations that stand there.

    Raises:
        DataError: logs cannot be used; names the file and the fix.
    """
    held_out = _HeldOut(base, data)
    for number, table in enumerate(tables):
        with naming_added():
            logs = read_runs(table.files, data)
            named = [replace(run, name=f"added-{number}/{run.name}") for run in logs.runs]
            added = cut(replace(logs, runs=named), data)
        assert data.window is not None
        known = [held_out.rows_of(run) for run in named]
        places = zip(added.windows.run, added.windows.start, strict=True)
        kept = np.array(
            [known[run][start : start + data.window].mean() < SAME for run, start in places]
        )
        if not kept.any():
            raise DataError(
                f"{table.uri}: nothing of it can be trained on: val or test has each of its "
                f"{len(kept)} windows. Name other logs in data.added"
            )
        note = (
            f"data.added: {kept.sum()} windows of {table.uri} went to train; {(~kept).sum()} were "
            "left out, for val or test has them, or their run or operation"
        )
        base = Source(
            logs=replace(
                base.logs,
                runs=base.runs + named,
                not_numeric={**added.logs.not_numeric, **base.logs.not_numeric},
                warnings=base.logs.warnings + added.logs.warnings,
                num_dropped=base.logs.num_dropped + added.logs.num_dropped,
            ),
            targets=base.targets + added.targets,
            windows=base.windows.followed_by(added.windows.take(kept), len(base.runs)),
            split=np.r_[base.split, np.full(kept.sum(), _TRAIN, np.int8)],
            notes=[*base.notes, *(f"{table.uri}: {text}" for text in added.notes), note],
            num_base_runs=base.num_base_runs,
            num_added=base.num_added + int(kept.sum()),
            num_withheld=base.num_withheld + int((~kept).sum()),
        )
    return base


def without_repeats(source: Source, matrices: Sequence[NDArray[np.float64]], window: int) -> Source:
    """Without the added windows that equal one of val or test in every feature.

    Args:
        matrices: the features of each run, [R, C].
        window: rows of each.
    """
    if not source.num_added:
        return source
    place = 2 * np.arange(window, dtype=np.uint64) + np.uint64(1)  # odd: each moves a key elsewhere
    keys = np.zeros(len(source.windows), np.uint64)
    for index in np.unique(source.windows.run).tolist():
        chosen = source.windows.run == index
        rows = row_keys(matrices[index].astype(np.float32))
        keys[chosen] = (
            rows[source.windows.start[chosen][:, None] + np.arange(window)] * place
        ).sum(axis=1, dtype=np.uint64)
    is_repeat = np.isin(keys, keys[source.split != _TRAIN])
    is_repeat[: len(keys) - source.num_added] = False
    if not is_repeat.any():
        return source
    note = (
        f"data.added: {is_repeat.sum()} more windows were left out: they equal one of val or test"
    )
    return replace(
        source,
        windows=source.windows.take(~is_repeat),
        split=source.split[~is_repeat],
        notes=[*source.notes, note],
        num_added=source.num_added - int(is_repeat.sum()),
        num_withheld=source.num_withheld + int(is_repeat.sum()),
    )


class _HeldOut:
    """The runs of which windows stand in val or test."""

    def __init__(self, source: Source, data: MachineLogsSpec):
        held = source.split != _TRAIN
        masks = [np.zeros(len(run), bool) for run in source.runs]
        assert data.window is not None
        for run, start in zip(source.windows.run[held], source.windows.start[held], strict=True):
            masks[run][start : start + data.window] = True
        self._runs = [
            (run, mask) for run, mask in zip(source.runs, masks, strict=True) if mask.any()
        ]
        self._operations = (
            {run.operation for run, _ in self._runs} if data.protocol == "by_operation" else set()
        )
        self._known: dict[tuple[str, ...], list[Keys]] = {}
        self._scale = _scales(run for run, _ in self._runs)

    def rows_of(self, run: Run) -> NDArray[np.bool_]:
        """Which rows of a run stand here: all if it is one of these again, or of an operation that
        is to be new to train. Shape [R]."""
        if run.operation in self._operations:
            return np.ones(len(run), bool)
        columns = tuple(sorted(name for name in run.columns if name in self._scale))
        if columns not in self._known:
            rows = [self._rounded(other, columns)[mask] for other, mask in self._runs]
            self._known[columns] = _keys(np.concatenate(rows))
        pairs = zip(_keys(self._rounded(run, columns)), self._known[columns], strict=True)
        found = [np.isin(keys, known) for keys, known in pairs]
        is_again = any(mask.mean() >= SAME for mask in found)
        return np.ones(len(run), bool) if is_again else found[0]

    def _rounded(self, run: Run, columns: Sequence[str]) -> NDArray[np.float32]:
        """Columns in steps that rounding does not cross, but at their edges. Shape [R, C]."""
        missing = np.full(len(run), np.nan)
        values = [run.columns.get(name, missing) / self._scale[name] for name in columns]
        return np.round(np.column_stack([np.zeros(len(run)), *values])).astype(np.float32)


def _scales(runs: Iterable[Run]) -> dict[str, float]:
    """A step for each column that all of the runs have measured: a small part of its spread."""
    every = list(runs)
    shared = set[str].intersection(*(set(run.columns) for run in every))
    scales = {}
    for name in shared:
        cells = np.concatenate([run.columns[name] for run in every])
        cells = cells[~np.isnan(cells)]
        if len(cells):
            scales[name] = ROUNDING * (float(cells.std()) or 1.0)
    return scales


def _keys(rows: NDArray[np.float32]) -> list[Keys]:
    """Keys of rows by all columns, and with each left out."""
    whole = row_keys(rows)
    return [whole, *(whole - column_hash(rows, j) for j in range(1, rows.shape[1]))]
