"""From a machine-log spec to a prepared dataset: read or simulate, cut, split, look for leaks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.added import AddedTable, find_tables
from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.added import extend, without_repeats
from ray_jobs.data.machine_logs.columns import choose_columns, find_copies
from ray_jobs.data.machine_logs.leaks import Leak, LeakRows, find_leaks
from ray_jobs.data.machine_logs.runs import Logs, Run, read_runs
from ray_jobs.data.machine_logs.source import Source, cut_and_split
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.data.machine_logs.windows import (
    Frame,
    load_windows,
    row_digest,
    write_run,
    write_windows,
)
from ray_jobs.data.prepared import read_summary, write_summary
from ray_jobs.data.table import DataFile, content_digest, find_files, nearest
from ray_jobs.errors import DataError
from ray_jobs.result import ColumnLeak, DataSummary, LeakageReport, SplitSummary
from ray_jobs.storage import Storage

__all__ = ["load_windows", "prepare_machine_logs"]

SHARE_TOLERANCE = 0.05  # how far a split's share may lie off the one asked for without a word
FEW_RUNS = 10  # in test: fewer make an interval over runs wide, and one over windows too narrow

PUBLISHED_WARNING = (
    "data.split=published leaks, by design: overlapping windows of one run stand in train, val and "
    "test, and machine positions that give X, Y and Z away are kept. Its scores reproduce an "
    "earlier figure and say nothing of a run not seen; data.split=by_run does"
)


def prepare_machine_logs(
    data: MachineLogsSpec,
    *,
    workload: str,
    seed: int,
    storage: Storage,
    num_workers: int | None = None,
    emit: Callable[..., None],
) -> DataSummary:
    """Make the dataset that a spec asks for, or find it made already.

    The folder's name is a digest of all that decides its content. An attempt that was broken off
    lacks the summary and is written over; two processes may do that at once, for they write the
    same.

    Args:
        data: where the runs come from, and how they are cut and split.
        workload: begins the folder's name.
        seed: of the simulator, the splits and the samples in which leaks are looked for.
        storage: takes `datasets/<workload>-<key>`.
        num_workers: not needed: a run is simulated in 15 ms, and read in 80.
        emit: the journal; receives `progress` (done, total, unit) and `warning` (message).

    Raises:
        DataError: the logs cannot be used as the spec asks, or, with data.leaks=refuse, a column
            gives a target away.
    """
    files = find_files(data.path) if data.path else []
    added = find_tables(data.added)
    folder = f"datasets/{workload}-{_key(data, seed, files, added)[:16]}"
    summary = read_summary(storage, folder)
    if summary is not None:
        num_windows = sum(split.num_rows for split in summary.splits.values())
        emit("progress", done=num_windows, total=num_windows, unit="windows", cached=True)
    else:
        logs = read_runs(files, data) if files else _simulate(data, seed, emit)
        source = extend(cut_and_split(logs, data, seed), added, data)
        summary = _write(source, data, seed, storage, folder, emit)
    for message in summary.warnings:
        emit("warning", message=message)
    return summary


def _key(
    data: MachineLogsSpec, seed: int, files: Sequence[DataFile], added: Sequence[AddedTable]
) -> str:
    """Digest of everything that decides the rows, their targets and their splits."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parts = {
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "content": content_digest(files) if files else "",
        "added": [table.digest() for table in added],
        "code": code.hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _simulate(data: MachineLogsSpec, seed: int, emit: Callable[..., None]) -> Logs:
    from ray_jobs.data.machine_logs.simulator import simulate_runs

    assert data.runs is not None
    return Logs(
        simulate_runs(
            data.runs,
            seed=seed,
            progress=lambda done, total: emit("progress", done=done, total=total, unit="runs"),
        )
    )


def _write(
    source: Source,
    data: MachineLogsSpec,
    seed: int,
    storage: Storage,
    folder: str,
    emit: Callable[..., None],
) -> DataSummary:
    """Choose the columns, scale, and write everything; the summary last."""
    assert data.window is not None
    in_train = source.train_rows(data.window)
    learned = [i for i, mask in enumerate(in_train) if mask.any()]
    base = [i for i in learned if i < source.num_base_runs]  # what is added changes no feature
    columns, excluded = choose_columns(
        [source.runs[i] for i in base],
        [in_train[i] for i in base],
        data.min_run_share,
        data.feature_columns,
    )
    rows = _leak_rows(source, in_train, base, columns)
    leaks = find_leaks(rows, seed=seed)
    if len(base) < len(learned):  # which may show more
        told = {(leak.column, leak.target) for leak in leaks}
        more = find_leaks(_leak_rows(source, in_train, learned, columns), seed=seed)
        leaks += [leak for leak in more if (leak.column, leak.target) not in told]
    kept, warnings = _judge(leaks, columns, data, source)
    places = [j for j, column in enumerate(columns) if column in kept]
    copies = find_copies(rows.x[:, places], [columns[j] for j in places])
    features = [column for column in columns if column in kept and column not in copies]
    matrices = [_matrix(run, features) for run in source.runs]
    source = without_repeats(source, matrices, data.window)
    in_train = source.train_rows(data.window)
    frame = _frame(source, matrices, in_train, features, data)
    for index, (matrix, targets) in enumerate(zip(matrices, source.targets, strict=True)):
        write_run(storage, folder, index, matrix, targets, features)
        emit("progress", done=index + 1, total=len(matrices), unit="runs")
    write_windows(storage, folder, source.windows, source.split, frame)
    summary = DataSummary(
        source=f"machine-logs:{data.path}" if data.path else f"simulator:{data.runs} runs",
        path=folder,
        digest=_digest(source, matrices, frame),
        features=features,
        label="command",
        classes=list(frame.commands),
        splits={name: _split_summary(source, i) for i, name in enumerate(SPLITS)},
        grouped_by={"by_run": "run", "by_operation": "operation"}.get(data.protocol),
        num_dropped=source.logs.num_dropped,
        num_added=source.num_added,
        num_withheld=source.num_withheld,
        leakage=LeakageReport(
            columns=[
                ColumnLeak(
                    column=leak.column,
                    target=leak.target,
                    refused=leak.column not in kept,
                    evidence=leak.evidence,
                )
                for leak in leaks
            ],
            excluded_columns={**source.logs.not_numeric, **excluded, **copies},
            notes=source.notes,
        ),
        warnings=[*source.logs.warnings, *warnings, *_doubts(source, frame, data)],
    )
    write_summary(storage, summary)
    return summary


def _leak_rows(
    source: Source,
    in_train: Sequence[NDArray[np.bool_]],
    learned: Sequence[int],
    columns: Sequence[str],
) -> LeakRows:
    def gathered(parts: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([part[in_train[i]] for i, part in zip(learned, parts, strict=True)])

    of = [(source.runs[i], source.targets[i]) for i in learned]
    stated = [
        np.array(
            [c if is_stated else "" for c, is_stated in zip(t.command, t.is_stated, strict=True)],
            object,
        )
        for _, t in of
    ]
    return LeakRows(
        x=gathered([_matrix(run, columns) for run, _ in of]),
        columns=tuple(columns),
        run=gathered([np.full(len(run), i) for i, (run, _) in enumerate(of)]),
        follows=gathered([np.r_[False, in_train[i][:-1]] for i in learned]),
        line=gathered([t.line for _, t in of]),
        is_last_of_line=gathered([t.is_last_of_line for _, t in of]),
        command=gathered(stated),
        values=gathered([t.values for _, t in of]),
    )


def _matrix(run: Run, columns: Sequence[str]) -> NDArray[np.float64]:
    """A run's columns side by side; one that it lacks is NaN. Shape [R, C]."""
    missing = np.full(len(run), np.nan)
    return np.column_stack([run.columns.get(column, missing) for column in columns])


def _judge(
    leaks: Sequence[Leak], columns: Sequence[str], data: MachineLogsSpec, source: Source
) -> tuple[set[str], list[str]]:
    """The columns that are kept, and what to warn of.

    Raises:
        DataError: with data.leaks=refuse, a leak is not allowed; or no column is left.
    """
    there = sorted(set().union(*(run.columns for run in source.runs)))
    for name in data.allow_leaks:
        if name not in there:
            raise DataError(
                f"data.allow_leaks names {name!r}, which no run has{nearest(name, there)}"
            )
    refused = [leak for leak in leaks if leak.column not in data.kept_leaks]
    names = [leak.column for leak in refused]
    if refused and data.leaks == "refuse":
        raise DataError(
            f"targets are given away by {', '.join(map(repr, names))}: "
            f"{'; '.join(f'{leak.column!r} {leak.evidence}' for leak in refused)}. Leave them out "
            f"with data.leaks=exclude, or keep them on purpose with data.allow_leaks={names}"
        )
    kept = set(columns) - set(names)
    if not kept:
        raise DataError(
            f"every column gives a target away: {', '.join(map(repr, names))}. Give data.path logs "
            "with sensors, or keep some on purpose with data.allow_leaks"
        )
    warnings = []
    if refused:
        warnings.append(
            f"{len(refused)} columns give a target away and are left out: "
            f"{', '.join(map(repr, names))}; the evidence is in the data's leakage report"
        )
    allowed = [leak.column for leak in leaks if leak.column in kept]
    if allowed and data.protocol != "published":
        warnings.append(
            f"data.allow_leaks keeps {', '.join(map(repr, allowed))}, which give a target away: no "
            "score says what the other sensors can do"
        )
    return kept, warnings


def _frame(
    source: Source,
    matrices: Sequence[NDArray[np.float64]],
    in_train: Sequence[NDArray[np.bool_]],
    features: Sequence[str],
    data: MachineLogsSpec,
) -> Frame:
    assert data.window is not None
    rows = np.concatenate([m[mask] for m, mask in zip(matrices, in_train, strict=True)])
    return Frame(
        features=tuple(features),
        mean=tuple(np.nanmean(rows, axis=0).tolist()),
        std=tuple(np.nanstd(rows, axis=0).tolist()),
        commands=tuple(sorted(set(source.commands("train")))),
        window=data.window,
        runs=tuple(run.name for run in source.runs),
        operations=tuple(run.operation for run in source.runs),
    )


def _split_summary(source: Source, index: int) -> SplitSummary:
    chosen = source.split == index
    return SplitSummary(
        num_rows=int(chosen.sum()),
        num_groups=len(np.unique(source.windows.run[chosen])),
        class_counts=dict(sorted(Counter(source.commands(SPLITS[index])).items())),
        digest=row_digest(source.windows.row_id[chosen]),
    )


def _digest(source: Source, matrices: Sequence[NDArray[np.float64]], frame: Frame) -> str:
    """sha256 of the frame, all rows with their targets, all windows and their splits."""
    digest = hashlib.sha256(frame.model_dump_json().encode())
    for matrix, targets in zip(matrices, source.targets, strict=True):
        digest.update(matrix.astype("<f4").tobytes() + targets.values.astype("<f8").tobytes())
        digest.update(json.dumps(targets.command).encode())
    for name in ("run", "start", "target_row", "row_id"):
        digest.update(getattr(source.windows, name).astype("<i8").tobytes())
    digest.update(source.split.tobytes())
    return digest.hexdigest()


def _doubts(source: Source, frame: Frame, data: MachineLogsSpec) -> list[str]:
    """What a reader of the scores should know about the splits."""
    doubts = [PUBLISHED_WARNING] if data.protocol == "published" else []
    for name in ("val", "test"):
        unseen = Counter(c for c in source.commands(name) if c not in frame.commands)
        if unseen:
            doubts.append(
                f"{name} has commands that train has not, which no model can name: "
                + ", ".join(f"{c} ({n} windows)" for c, n in sorted(unseen.items()))
            )
    split = source.split[: len(source.split) - source.num_added]
    shares = np.bincount(split, minlength=len(SPLITS)) / len(split)
    asked = [getattr(data.split, name) for name in SPLITS]
    if any(
        abs(share - wanted) > SHARE_TOLERANCE for share, wanted in zip(shares, asked, strict=True)
    ):
        doubts.append(
            f"whole {'runs' if data.protocol == 'by_run' else 'operations'} make the splits "
            f"{' / '.join(f'{share:.0%}' for share in shares)} of the windows, where "
            f"{' / '.join(f'{wanted:.0%}' for wanted in asked)} was asked for"
        )
    test = source.windows.run[source.split == SPLITS.index("test")]
    num_runs = len(np.unique(test))
    if data.protocol != "published" and num_runs < FEW_RUNS:
        doubts.append(
            f"only {num_runs} runs in test: intervals over them are wide, and do not tell how far "
            "the score would move with other operations"
        )
    return doubts
