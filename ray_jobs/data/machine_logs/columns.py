"""Which columns of the logs are sensors: numbers that vary, and neither a copy nor a clock."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.runs import Run
from ray_jobs.data.table import nearest
from ray_jobs.errors import DataError

MIN_STD = 1e-9  # of a column, relative to its size: less is rounding


def choose_columns(
    runs: Sequence[Run],
    masks: Sequence[NDArray[np.bool_]],
    min_run_share: float,
    wanted: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The columns to learn from, sorted by name, and why the others are left out.

    Args:
        runs: those that train has rows of.
        masks: each run's rows [R] that are in train; nothing else is looked at.
        min_run_share: of the runs that must have measured a column.
        wanted: names, or patterns as of files, of the columns to choose among; empty: all.

    Raises:
        DataError: no column is left, or what is wanted is not there.
    """
    excluded: dict[str, str] = {}
    chosen: list[str] = []
    there = sorted(set().union(*(run.columns for run in runs)))
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(column, pattern) for column in there):
            raise DataError(
                f"data.feature_columns names {pattern!r}, which is no column of the logs"
                f"{nearest(pattern, there)}"
            )
    for column in there:
        if wanted and not any(fnmatch.fnmatchcase(column, pattern) for pattern in wanted):
            excluded[column] = "not among data.feature_columns"
            continue
        parts = [
            run.columns[column][mask] if column in run.columns else np.full(mask.sum(), np.nan)
            for run, mask in zip(runs, masks, strict=True)
        ]
        reason = _unfit(parts, min_run_share)
        if reason:
            excluded[column] = reason
        else:
            chosen.append(column)
    if not chosen:
        raise DataError(
            "no column of the logs can be learned from: "
            + "; ".join(f"{name!r} is left out: {why}" for name, why in excluded.items())
        )
    return chosen, excluded


def find_copies(rows: NDArray[np.float64], columns: Sequence[str]) -> dict[str, str]:
    """Columns of rows [R, C] that repeat an earlier one in every row, and which."""
    first: dict[bytes, str] = {}
    copies: dict[str, str] = {}
    for column, values in zip(columns, rows.T, strict=True):
        original = first.setdefault(hashlib.sha256(values.tobytes()).digest(), column)
        if original != column:
            copies[column] = f"repeats {original!r} in every row"
    return copies


def _unfit(parts: Sequence[NDArray[np.float64]], min_run_share: float) -> str | None:
    """Why a column, given run by run, is no feature; None if it is one."""
    has = [part[~np.isnan(part)] for part in parts]
    measured = [part for part in has if len(part)]
    if not measured:
        return "empty"
    if len(measured) < min_run_share * len(parts):
        return (
            f"measured in {len(measured)} of train's {len(parts)} runs "
            f"(data.min_run_share={min_run_share:g})"
        )
    values = np.concatenate(measured)
    if values.std() <= MIN_STD * max(1.0, float(np.abs(values).max())):
        return "constant"
    steps = [np.diff(part) for part in measured]
    if len(values) > 2 * len(measured) and all(np.all(step > 0) for step in steps):
        return "a clock or counter: it rises with every row"
    return None
