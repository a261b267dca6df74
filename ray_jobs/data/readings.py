"""A user's table as readings: labelled rows in recorded order, and what was recorded together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data import columns, sessions
from ray_jobs.data.dataset import SPLITS, Rows
from ray_jobs.data.spec import DataSpec
from ray_jobs.data.table import DataFile, Table, nearest, read_table
from ray_jobs.errors import DataError

MIN_ROWS = 20


@dataclass(frozen=True)
class Readings:
    """Rows, and what is known of how they were recorded."""

    rows: Rows  # NaN where a cell is to be imputed; an ungrouped row is a group of its own
    grouped_by: str | None  # in words
    name_group: Callable[[int], str] | None  # what a group's code stands for; None: ungrouped
    label: str
    excluded: dict[str, str] = field(default_factory=dict)  # column -> why it is no feature
    num_dropped: int = 0  # rows
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Roles:
    """The columns that are no features, by name."""

    label: str
    group: str | None
    time: str | None
    id: str | None
    true_probability: str | None

    def names(self) -> set[str]:
        return {name for name in vars(self).values() if name is not None}


@dataclass(frozen=True)
class _Grouping:
    """The group of each row, shape [N], and where it comes from."""

    group: NDArray[np.int64]
    grouped_by: str | None
    name_group: Callable[[int], str] | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_readings(files: Sequence[DataFile], data: DataSpec) -> Readings:
    """Read files and find out what each column is for, as far as neither spec nor file says it.

    Without `data.group_column`, what was recorded together is read off the data: off a counter or
    clock that starts again, off the files, or off rows that resemble their neighbours.

    Raises:
        DataError: the files cannot be used as the spec asks.
    """
    table = read_table(files)
    y, roles = _find_roles(table, data)
    row_id = columns.row_ids(table, roles.id)
    order = _recorded_order(table, roles)
    clocks = _find_clocks(table, roles, order)
    features, excluded = _choose_features(table, data, roles, clocks)
    x = columns.matrix(table, features)
    kept = _judge_nonfinite(table, x, features, data)
    _refuse_few_left(table, x, y, kept, features)
    grouping = _group(table, roles, clocks, order, x, y)
    index = order[kept[order]]
    rows = Rows(
        x=x[index],
        y=y[index],
        group=grouping.group[kept[order]],
        row_id=row_id[index],
        features=tuple(features),
        true_probability=(
            columns.matrix(table, [roles.true_probability])[index, 0]
            if roles.true_probability
            else None
        ),
    )
    return Readings(
        rows=rows,
        grouped_by=grouping.grouped_by,
        name_group=grouping.name_group,
        label=roles.label,
        excluded=excluded,
        num_dropped=int(np.sum(~kept)),
        notes=grouping.notes,
        warnings=grouping.warnings,
    )


def read_added(files: Sequence[DataFile], data: DataSpec, base: Readings) -> Readings:
    """Read further rows with the features and the label of `base`; one class of it will do.

    Raises:
        DataError: a column of `base` is missing, or the files cannot be used as the spec asks.
    """
    table = read_table(files)
    names = table.columns.column_names
    for name in (base.label, *base.rows.features):
        if name not in names:
            raise DataError(
                f"{table.files[0].name}: no column {name!r}, which the data that it is added to "
                f"has; there is {', '.join(names)}{nearest(name, names)}"
            )
    y = columns.labels(table, base.label, needs_both=False)
    roles = _roles(table, data, base.label)
    order = _recorded_order(table, roles)
    features = list(base.rows.features)
    for name in features:
        columns.require_numeric(table, name)
    x = columns.matrix(table, features)
    kept = _judge_nonfinite(table, x, features, data)
    grouping = _group(table, roles, _find_clocks(table, roles, order), order, x, y)
    index = order[kept[order]]
    return Readings(
        rows=Rows(
            x=x[index],
            y=y[index],
            group=grouping.group[kept[order]],
            row_id=columns.row_ids(table, roles.id)[index],
            features=base.rows.features,
        ),
        grouped_by=grouping.grouped_by,
        name_group=grouping.name_group,
        label=base.label,
        num_dropped=int(np.sum(~kept)),
    )


def _find_roles(table: Table, data: DataSpec) -> tuple[NDArray[np.int8], _Roles]:
    """The labels [N] and the columns that are no features, as the spec or else the file says."""
    declared = table.roles
    label = data.label_column or (declared.label if declared else None)
    y = columns.labels(table, label)
    assert label is not None
    if len(y) < MIN_ROWS:
        raise DataError(
            f"{table.files[0].name}: {len(y)} rows; at least {MIN_ROWS} are needed to train, "
            "validate and test. Add data"
        )
    return y, _roles(table, data, label)


def _roles(table: Table, data: DataSpec, label: str) -> _Roles:
    declared = table.roles
    return _Roles(
        label=label,
        group=data.group_column or (declared.group if declared else None),
        time=data.time_column or (declared.time if declared else None),
        id=data.id_column or (declared.id if declared else None),
        true_probability=declared.true_probability if declared else None,
    )


def _recorded_order(table: Table, roles: _Roles) -> NDArray[np.int64]:
    """The rows by group, then time, then place in the files. Shape [N]."""
    order = np.arange(table.columns.num_rows)
    if roles.time:
        time = columns.times(table, roles.time)
        # Sessions one after the other, each in time order, are left as they stand.
        if roles.group or np.mean(np.diff(time) >= 0) < sessions.CLOCK_SHARE:
            order = np.argsort(time, kind="stable")
    if roles.group:
        group, _ = columns.codes(table, roles.group)
        order = order[np.argsort(group[order], kind="stable")]
    return order


def _find_clocks(
    table: Table, roles: _Roles, order: NDArray[np.int64]
) -> dict[str, sessions.Clock]:
    """The columns that count or run with time, within groups where those are known."""
    is_start = None
    if roles.group:
        group = columns.codes(table, roles.group)[0][order]
        is_start = np.r_[True, group[1:] != group[:-1]]
    clocks = {}
    for name in table.columns.column_names:
        column = table.columns.column(name)
        if name in roles.names() or not columns.is_clock_type(column.type):
            continue
        clock = sessions.find_clock(columns.clock_values(column)[order], is_start)
        if clock:
            clocks[name] = clock
    return clocks


def _choose_features(
    table: Table, data: DataSpec, roles: _Roles, clocks: Mapping[str, sessions.Clock]
) -> tuple[list[str], dict[str, str]]:
    """The features, and of the other columns why they are none."""
    named = data.feature_columns
    if named is None and table.roles:
        named = list(table.roles.features)
    if named is not None:
        for i, name in enumerate(named):
            columns.require_numeric(table, name)
            if name == roles.label or name in named[:i]:
                fault = "is the label" if name == roles.label else "is named twice"
                raise DataError(f"data.feature_columns: {name!r} {fault}. Leave it out")
        if not named:
            raise DataError("data.feature_columns is empty. Name columns, or leave the key out")
        return named, {}
    others = [name for name in table.columns.column_names if name not in roles.names()]
    numeric, excluded = columns.numeric_columns(table, others)
    for name in others:
        if name in clocks:
            excluded[name] = clocks[name].reason
        elif name in numeric and columns.is_constant(table.columns.column(name)):
            excluded[name] = "constant"
    features = [name for name in numeric if name not in excluded]
    if not features:
        why = ", ".join(f"{name}: {reason}" for name, reason in excluded.items())
        raise DataError(
            f"{table.files[0].name}: no column to learn from ({why or 'only the label'}). "
            "Name some in data.feature_columns"
        )
    return features, excluded


def _judge_nonfinite(
    table: Table, x: NDArray[np.float32], features: list[str], data: DataSpec
) -> NDArray[np.bool_]:
    """The rows to keep under `data.nonfinite`, shape [N]. Infinite cells of `x` become NaN."""
    if data.nonfinite == "refuse":
        columns.refuse_nonfinite(table, x, features)
    is_missing = ~np.isfinite(x)
    x[is_missing] = np.nan
    if data.nonfinite != "drop":
        return np.ones(len(x), bool)
    return is_missing.sum(axis=1) == 0


def _refuse_few_left(
    table: Table,
    x: NDArray[np.float32],
    y: NDArray[np.int8],
    kept: NDArray[np.bool_],
    features: list[str],
) -> None:
    """Raise DataError if data.nonfinite=drop leaves too little."""
    if kept.all() or (kept.sum() >= MIN_ROWS and len(np.unique(y[kept])) == 2):
        return
    is_missing = np.isnan(x)
    worst = int(np.argmax(is_missing.sum(axis=0)))
    raise DataError(
        f"{table.files[0].name}: data.nonfinite=drop leaves {kept.sum()} of {len(x)} rows and "
        f"{len(np.unique(y[kept]))} of 2 classes; column {features[worst]!r} is empty, NaN or "
        f"infinite in {is_missing[:, worst].sum()}. Leave it out of data.feature_columns, or "
        "set data.nonfinite to impute"
    )


def _group(
    table: Table,
    roles: _Roles,
    clocks: Mapping[str, sessions.Clock],
    order: NDArray[np.int64],
    x: NDArray[np.float32],
    y: NDArray[np.int8],
) -> _Grouping:
    """What was recorded together, of the rows in recorded order."""
    if roles.group:
        group, names = columns.codes(table, roles.group)
        return _Grouping(group[order], f"column {roles.group!r}", names.__getitem__)
    if roles.time:
        time = columns.times(table, roles.time)[order]
        clocks = {roles.time: sessions.clock(time, "data.time_column")}
    elif table.roles:  # Emberline's own rows: without a group they stand alone
        return _Grouping(np.arange(len(order)), None, None)
    found = sessions.sessions_of(clocks)
    if found:
        name, group = found
        return _Grouping(group, f"sessions of {name!r}", lambda code: f"session {code + 1}")
    group = table.file_of_row()[order]
    if all(len(np.unique(group[y[order] == label])) >= len(SPLITS) for label in (0, 1)):
        names = [file.name for file in table.files]
        return _Grouping(group, "files", names.__getitem__)
    if roles.time or sessions.is_autocorrelated(x[order]):
        group = sessions.blocks(len(order))
        by = f"blocks of about {len(order) // sessions.NUM_BLOCKS:,} consecutive rows"
        warning = (
            f"the rows are one recording, cut into {by} for the splits: the score is for this "
            "recording, not for a new one. If there are several, name what tells them apart in "
            "data.group_column"
        )
        return _Grouping(group, by, lambda code: f"block {code + 1}", warnings=(warning,))
    note = (
        "rows were taken as independent of each other. If some were recorded together, name what "
        "they share in data.group_column"
    )
    return _Grouping(np.arange(len(order)), None, None, notes=(note,))
