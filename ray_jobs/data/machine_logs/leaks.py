"""Columns that give a target away, found by what they hold and not by what they are called.

A column is a leak if, on the training rows,

- it changes exactly where the G-code line does (it numbers the lines);
- a small tree on it tells the command, or which parameters a line sets;
- it is a parameter's value, in any unit, on the rows whose lines set the parameter;
- it, or a linear map of it and one other column, is the value that a line sets once the machine has
  arrived there, up to a constant of each run;
- or it is a linear map of such a column, up to a constant of each run.

Shapes: N rows, C columns, P parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.trimmed_fit import (
    MIN_FREEDOM,
    SCREEN_R2,
    Fit,
    Floats,
    Ints,
    fit_trimmed,
    unit_columns,
)

Bools = NDArray[np.bool_]

LINE_MCC = 0.95  # Matthews correlation of "the column changes" with "the line changes"
BALANCED_ACCURACY = 0.99  # of a tree on the column alone
MAX_LEAVES = 16
MAX_CLASS_ROWS = 100
MIN_CLASS_ROWS = 10
VALUE_R2 = 0.96  # adjusted, on the rows that the fit keeps
VALUE_AGREEMENT = 0.3  # share of all rows whose value the map gives to 1 % of the range
COPY_R2 = 0.999
PAIR_SCREEN_R2 = 0.8
MAX_COPY_ROWS = 2000
MIN_WORD_ROWS = 5
WORD_AGREEMENT = 0.95
WORD_TOLERANCE = 1e-4  # relative


@dataclass(frozen=True)
class LeakRows:
    """Rows in which leaks are looked for, run by run in time order."""

    x: Floats  # [N, C], NaN: not measured
    columns: tuple[str, ...]
    run: Ints  # [N]
    follows: Bools  # [N] whether the row comes right after the one before, in one run
    line: Ints  # [N] equal codes: equal lines of a run; -1: none
    is_last_of_line: Bools  # [N]
    command: NDArray[np.object_]  # [N], the command that the line itself states, else ""
    values: Floats  # [N, P], NaN: not set


@dataclass(frozen=True)
class Leak:
    """A column that gives a target away."""

    column: str
    target: str  # "line", "command", "param_type", or a parameter's name
    evidence: str


def find_leaks(rows: LeakRows, *, seed: int) -> list[Leak]:
    """The leaks, in the order of the columns, each with the target it tells best."""
    found: dict[str, Leak] = {}
    for leaks in (_line_numbers(rows), _categories(rows, seed), _words(rows), _values(rows)):
        for leak in leaks:
            found.setdefault(leak.column, leak)
    for leak in _pairs(rows, found):
        found.setdefault(leak.column, leak)
    _add_copies(rows, found, seed)
    return [found[column] for column in rows.columns if column in found]


def _line_numbers(rows: LeakRows) -> list[Leak]:
    leaks = []
    has_line = rows.line[1:] >= 0
    new_line = rows.line[1:] != rows.line[:-1]
    for j, column in enumerate(rows.columns):
        x = rows.x[:, j]
        known = rows.follows[1:] & has_line & ~np.isnan(x[1:]) & ~np.isnan(x[:-1])
        mcc = _matthews(x[1:][known] != x[:-1][known], new_line[known])
        if mcc >= LINE_MCC:
            leaks.append(
                Leak(
                    column,
                    "line",
                    f"numbers the lines: it changes exactly where the G-code line does (Matthews "
                    f"correlation {mcc:.4f} over {known.sum()} rows)",
                )
            )
    return leaks


def _matthews(a: Bools, b: Bools) -> float:
    if min(a.sum(), b.sum(), (~a).sum(), (~b).sum()) < MIN_CLASS_ROWS:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _categories(rows: LeakRows, seed: int) -> list[Leak]:
    """Commands on the rows that state them: what the others inherit may be of a column's making."""
    sets = ~np.isnan(rows.values)
    kinds = sets @ (1 << np.arange(len(PARAMETERS)))
    every = {
        "command": (rows.command.astype(str), rows.command != ""),
        "param_type": (kinds.astype(str), (rows.line >= 0) & (kinds > 0)),
    }
    leaks = []
    for target, (labels, chosen) in every.items():
        for j, column in enumerate(rows.columns):
            known = np.flatnonzero(chosen & ~np.isnan(rows.x[:, j]))
            score, num_classes, num_rows = _tree_score(rows.x[known, j], labels[known], seed)
            if score >= BALANCED_ACCURACY:
                what = "the command" if target == "command" else "which parameters a line sets"
                leaks.append(
                    Leak(
                        column,
                        target,
                        f"tells {what}: a tree on it alone has a balanced accuracy of {score:.4f} "
                        f"over {num_classes} classes and {num_rows} rows",
                    )
                )
    return leaks


def _tree_score(x: Floats, labels: NDArray[np.str_], seed: int) -> tuple[float, int, int]:
    """Balanced accuracy, classes and rows; 0 where there is too little to tell."""
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= MIN_CLASS_ROWS]
    if len(classes) < 2:
        return 0.0, 0, 0
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:MAX_CLASS_ROWS] for c in classes]
    chosen = np.concatenate(drawn)
    y = np.repeat(np.arange(len(classes)), [len(part) for part in drawn])
    tree = DecisionTreeClassifier(
        max_leaf_nodes=MAX_LEAVES, class_weight="balanced", random_state=seed
    )
    is_right = tree.fit(x[chosen, None], y).predict(x[chosen, None]) == y
    recall = np.bincount(y, is_right) / np.bincount(y)
    return float(recall.mean()), len(classes), len(chosen)


def _words(rows: LeakRows) -> list[Leak]:
    """Columns that repeat a parameter in another unit: few rows suffice, for nothing else is as
    exact."""
    leaks = []
    for p, j in itertools.product(range(len(PARAMETERS)), range(len(rows.columns))):
        t, x = rows.values[:, p], rows.x[:, j]
        known = ~np.isnan(t) & ~np.isnan(x) & (t != 0)
        if known.sum() < MIN_WORD_ROWS:
            continue
        t, x = t[known], x[known]
        unit = float(np.median(x / t))
        is_exact = np.abs(x - unit * t) <= WORD_TOLERANCE * np.abs(unit * t)
        if unit and is_exact.mean() >= WORD_AGREEMENT and len(np.unique(t[is_exact])) > 1:
            leaks.append(
                Leak(
                    rows.columns[j],
                    PARAMETERS[p],
                    f"is {unit:.6g} x {PARAMETERS[p]} on {is_exact.mean():.0%} of the {len(t)} "
                    f"rows whose lines set {PARAMETERS[p]}",
                )
            )
    return leaks


def _values(rows: LeakRows) -> list[Leak]:
    """Columns that are a parameter's value: on all rows that set it, or once they are done."""
    best: dict[str, tuple[Fit, Leak]] = {}
    for p in range(len(PARAMETERS)):
        for chosen, j in _candidates(rows, p):
            known = chosen[~np.isnan(rows.x[chosen, j])]
            fit = _best_fit(rows.values[known, p], rows.x[known][:, [j]], rows.run[known])
            column = rows.columns[j]
            if fit and (column not in best or fit.r2 > best[column][0].r2):
                evidence = f"is the value of {PARAMETERS[p]}, {_told(fit, [column])}"
                best[column] = (fit, Leak(column, PARAMETERS[p], evidence))
    return [leak for _, leak in best.values()]


def _candidates(rows: LeakRows, p: int) -> Iterator[tuple[Ints, int]]:
    for chosen in _value_rows(rows, p):
        for j in _promising(rows.values[chosen, p], rows.x[chosen], rows.run[chosen]):
            yield chosen, j


def _promising(t: Floats, x: Floats, run: Ints) -> list[int]:
    """Columns of x [N, C] whose untrimmed fit is not hopeless."""
    if len(t) < MIN_FREEDOM:
        return []
    r2 = []
    for group in _groupings(run):
        unit_t, unit_x = unit_columns(t[:, None], group), unit_columns(x, group)
        r2.append((unit_x.T @ unit_t[:, 0]) ** 2)
    return np.flatnonzero(np.max(r2, axis=0) >= SCREEN_R2).tolist()


def _pairs(rows: LeakRows, found: dict[str, Leak]) -> list[Leak]:
    """Two columns of which neither gives a value away alone, though a linear map of both does."""
    leaks: dict[str, Leak] = {}
    free = [j for j, column in enumerate(rows.columns) if column not in found]
    for p in range(len(PARAMETERS)):
        for chosen in _value_rows(rows, p):
            for group in _groupings(rows.run[chosen]):
                for a, b in _promising_pairs(
                    rows.values[chosen, p], rows.x[chosen][:, free], group
                ):
                    pair = [free[a], free[b]]
                    known = chosen[~np.isnan(rows.x[chosen][:, pair]).any(axis=1)]
                    fit = _best_fit(rows.values[known, p], rows.x[known][:, pair], rows.run[known])
                    if not fit:
                        continue
                    names = [rows.columns[j] for j in pair]
                    for name, other in (names, names[::-1]):
                        evidence = (
                            f"is, together with {other!r}, the value of {PARAMETERS[p]}, "
                            f"{_told(fit, names)}"
                        )
                        leaks.setdefault(name, Leak(name, PARAMETERS[p], evidence))
    return list(leaks.values())


def _value_rows(rows: LeakRows, p: int) -> list[Ints]:
    is_set = ~np.isnan(rows.values[:, p])
    return [np.flatnonzero(is_set), np.flatnonzero(is_set & rows.is_last_of_line)]


def _promising_pairs(t: Floats, x: Floats, group: Ints) -> list[tuple[int, int]]:
    """Pairs of columns [C] whose untrimmed fit is good, from the correlations of all at once."""
    if len(t) - len(np.unique(group)) - 2 < MIN_FREEDOM:
        return []
    unit_x = unit_columns(x, group)
    r = unit_x.T @ unit_columns(t[:, None], group)[:, 0]
    between = unit_x.T @ unit_x
    rest = 1 - between**2
    r2 = (r[:, None] ** 2 + r**2 - 2 * r[:, None] * r * between) / np.maximum(rest, 1e-6)
    good = np.argwhere(np.triu((r2 >= PAIR_SCREEN_R2) & (rest > 1e-4), k=1))
    return [(int(a), int(b)) for a, b in good]


def _add_copies(rows: LeakRows, found: dict[str, Leak], seed: int) -> None:
    """Columns that are a linear map of a leak within a run; fills `found` in place."""
    chosen = np.arange(len(rows.run))
    if len(chosen) > MAX_COPY_ROWS:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(chosen, MAX_COPY_ROWS, replace=False))
    place = {column: j for j, column in enumerate(rows.columns)}
    queue = list(found)
    while queue:
        source = queue.pop(0)
        near = _promising(rows.x[chosen, place[source]], rows.x[chosen], rows.run[chosen])
        for column in (rows.columns[j] for j in near):
            if column in found:
                continue
            pair = rows.x[chosen][:, [place[column], place[source]]]
            known = ~np.isnan(pair).any(axis=1)
            t, x, run = pair[known, 0], pair[known, 1:], rows.run[chosen][known]
            fit = _best_fit(t, x, run, min_r2=COPY_R2)
            if fit:
                found[column] = Leak(
                    column,
                    found[source].target,
                    f"is {fit.slopes[0]:.6g} x {source!r} plus a constant, for {fit.agreement:.0%} "
                    f"of {fit.num_rows} rows, and {source!r} {found[source].evidence}",
                )
                queue.append(column)


def _best_fit(t: Floats, x: Floats, run: Ints, min_r2: float = VALUE_R2) -> Fit | None:
    """The better of the fits with one constant and with one a run, if it is good enough."""
    if len(t) < MIN_FREEDOM:
        return None
    fits = [fit_trimmed(t, x, group) for group in _groupings(run)]
    good = [fit for fit in fits if fit and fit.r2 >= min_r2 and fit.agreement >= VALUE_AGREEMENT]
    return max(good, key=lambda fit: fit.r2, default=None)


def _groupings(run: Ints) -> Sequence[Ints]:
    return (np.zeros_like(run), run)


def _told(fit: Fit, columns: Sequence[str]) -> str:
    terms = " + ".join(
        f"{slope:.6g} x {column!r}" for slope, column in zip(fit.slopes, columns, strict=True)
    )
    return (
        f"{terms} plus a constant: R2 {fit.r2:.4f}, and {fit.agreement:.0%} of {fit.num_rows} rows "
        "to within 1 % of its range"
    )
