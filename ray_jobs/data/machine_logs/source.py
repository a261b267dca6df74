"""Runs with the targets of their rows, cut into windows and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.runs import Logs, Run
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.data.machine_logs.splits import assign_splits
from ray_jobs.data.machine_logs.targets import (
    RowTargets,
    apply_modal_code,
    find_modal_code,
    row_targets,
)
from ray_jobs.data.machine_logs.windows import WindowTable, cut_windows
from ray_jobs.errors import DataError


@dataclass(frozen=True)
class Cut:
    """Runs with their targets, cut into windows."""

    logs: Logs
    targets: list[RowTargets]
    windows: WindowTable
    notes: list[str]


@dataclass(frozen=True)
class Source:
    """Runs with their targets, cut into windows and split."""

    logs: Logs
    targets: list[RowTargets]
    windows: WindowTable
    split: NDArray[np.int8]  # [N windows]
    notes: list[str]
    num_base_runs: int  # the first ones; the others are of data.added
    num_added: int = 0  # windows of data.added: the last ones
    num_withheld: int = 0  # windows of data.added that are left out

    @property
    def runs(self) -> list[Run]:
        return self.logs.runs

    def train_rows(self, window: int) -> list[NDArray[np.bool_]]:
        """The rows of each run that windows of train cover."""
        masks = [np.zeros(len(run), bool) for run in self.runs]
        for i in np.flatnonzero(self.split == SPLITS.index("train")).tolist():
            start = self.windows.start[i]
            masks[self.windows.run[i]][start : start + window] = True
        return masks

    def commands(self, split: str) -> list[str]:
        """The commands of a split's windows."""
        chosen = np.flatnonzero(self.split == SPLITS.index(split))
        pairs = zip(self.windows.run[chosen], self.windows.target_row[chosen], strict=True)
        return [self.targets[run].command[row] or "" for run, row in pairs]


def cut_and_split(logs: Logs, data: MachineLogsSpec, seed: int) -> Source:
    """Resolve the targets, cut the windows and give each its split.

    Raises:
        DataError: no window has a target, or there are too few runs or operations.
    """
    whole = cut(logs, data)
    split = assign_splits(
        whole.windows.run,
        [run.name for run in logs.runs],
        [run.operation for run in logs.runs],
        data.split,
        seed=seed,
    )
    return Source(logs, whole.targets, whole.windows, split, whole.notes, len(logs.runs))


def cut(logs: Logs, data: MachineLogsSpec) -> Cut:
    """Resolve the targets and cut the windows.

    Raises:
        DataError: no window has a target.
    """
    assert data.window is not None
    assert data.stride is not None
    runs, notes = logs.runs, list(logs.notes)
    targets = [row_targets(run) for run in runs]
    if data.modal == "logged":
        targets = _logged(runs, targets, notes)
    windows = cut_windows(
        targets,
        [run.name for run in runs],
        window=data.window,
        stride=data.stride,
        most_frequent=data.target == "most_frequent_line",
    )
    lengths = [len(run) for run in runs]
    num_whole = sum(max(0, (n - data.window) // data.stride + 1) for n in lengths)
    if num_whole > len(windows):
        notes.append(
            f"{num_whole - len(windows)} windows have no target: no G-code, or no command yet"
        )
    short = [run.name for run in runs if len(run) < data.window]
    if short:
        notes.append(
            f"{len(short)} runs are shorter than data.window={data.window} rows and give no window"
        )
    if not len(windows):
        raise DataError(
            f"no window has a target: the longest run has {max(lengths)} rows, and data.window is "
            f"{data.window}. Lower data.window, or give data.path other logs"
        )
    return Cut(logs, targets, windows, notes)


def _logged(
    runs: Sequence[Run], targets: Sequence[RowTargets], notes: list[str]
) -> list[RowTargets]:
    """Commands in force by the controller's modal code, where the logs have one."""
    code = find_modal_code(runs, targets)
    if code is None:
        return list(targets)
    logged = [
        apply_modal_code(run, of_run, code) for run, of_run in zip(runs, targets, strict=True)
    ]
    num_changed = sum(changed for _, changed in logged)
    if num_changed:
        notes.append(
            f"{num_changed} rows whose line states no command follow one that is not in the log "
            f"(it has not a row for each line): column {code.column!r} has the command in force, "
            f"as {code.agreement:.2%} of {code.num_rows} rows that state one show; "
            "data.modal=inherit takes the last one seen"
        )
    return [of_run for of_run, _ in logged]
