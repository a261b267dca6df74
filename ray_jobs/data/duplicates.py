"""Rows that stand in the data more than once, exactly or but for one or two columns.

Every row is reduced to a 64-bit key: the wrap-around sum of one hash a column. Leaving columns out
of the comparison is then a subtraction, and rows with equal keys are equal rows (one chance in 10^7
of a single false match among a million rows). Of large tables only the rows with the smallest keys
are compared: equal rows are in that sample together or not at all, so it finds repeats in their
true proportion (A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997).

Shapes: N rows, F columns, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import Rows
from ray_jobs.result import DuplicateReport

MAX_COMPARED = 1 << 16  # rows, for each choice of columns
MAX_PAIR_COLUMNS = 64  # with more columns only one at a time is left out
MIN_COLUMNS_LEFT = 3  # fewer columns do not identify a row
GROUP_OVERLAP = 0.5  # of a group's rows that repeat another group's: the same recording
MIN_GROUP_ROWS = 10  # repeated rows; fewer prove nothing about two groups
MIN_ROW_SHARE = 0.01  # of ungrouped rows that repeat another in all but the columns left out
MIN_DISTINCT_SHARE = 0.5  # of the keys of ungrouped rows: else they do not identify a row
MAX_CHANCE = 0.001  # of independent rows that agree in the columns left: else they are no proof
ROUNDING = 1e-3  # standard deviations of a column

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Repeats:
    """What was found, and each row's independent group: rows of one code must stay in one split."""

    independent: NDArray[np.int64]  # [N]
    report: DuplicateReport
    notes: tuple[str, ...] = ()


def find_repeats(rows: Rows, name_group: Callable[[int], str] | None) -> Repeats:
    """Find repeated rows and repeated groups of rows.

    Groups that repeat at least half of each other's rows are merged. Without groups, rows that
    repeat each other form one.

    Args:
        rows: any order; NaN equals NaN.
        name_group: what a group's code stands for; None if each row stands alone.
    """
    keys = row_keys(rows.x)
    num_exact = len(keys) - len(np.unique(keys))
    if name_group is None:
        independent, left_out = _merge_rows(rows.x, keys)
        merged = []
    else:
        codes, group = np.unique(rows.group, return_inverse=True)
        root, left_out = _merge_groups(rows.x, keys, group, len(codes))
        independent = root[group]
        firsts, sizes = np.unique(root, return_counts=True)
        merged = [
            [name_group(int(code)) for code in codes[root == first]] for first in firsts[sizes > 1]
        ]
    num_near = 0
    if left_out:
        alike = _without(keys, rows.x, left_out)
        num_near = len(alike) - len(np.unique(alike)) - num_exact
    report = DuplicateReport(
        num_exact=num_exact,
        num_near=num_near,
        differing_columns=[rows.features[j] for j in left_out],
        merged_groups=merged,
    )
    return Repeats(independent, report, tuple(_limits(*rows.x.shape)))


def repeats_of(
    x: NDArray[np.float32], held_out: NDArray[np.float32], train: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which rows are one of `held_out` again: equal, equal in all but one or two columns, or but
    for rounding. Shape [N].

    Args:
        x: rows that may be repeats, [N, F]; no NaN.
        held_out: what they may repeat, [M, F].
        train: rows known to be independent of `held_out`, [K, F]. Columns in which they agree with
            it, too, do not identify a row.
    """
    found = _rounded(x, held_out)
    drawn = train[:: max(1, len(train) // MAX_COMPARED)]
    compared = (_left_out(row_keys(part), part) for part in (x, held_out, drawn))
    for (columns, keys), (_, held), (_, known) in zip(*compared, strict=True):
        if not columns or np.isin(known, held).mean() <= MAX_CHANCE:
            found |= np.isin(keys, held)
    return found


def _rounded(x: NDArray[np.float32], held_out: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows differ from one held out by no more than a table written with fewer digits."""
    from scipy.spatial import KDTree

    scale = held_out.std(axis=0)
    scale[scale == 0] = 1
    tree = KDTree(held_out / scale)
    distance, _ = tree.query(x / scale, p=np.inf, distance_upper_bound=ROUNDING)
    return np.isfinite(distance)


def count_across_splits(x: NDArray[np.float32], split: NDArray[np.int8]) -> int:
    """How many rows of val and test equal one of train. `split` is 0 for train, shape [N]."""
    keys = row_keys(x)
    return int(np.isin(keys[split != 0], keys[split == 0]).sum())


def row_keys(x: NDArray[np.float32]) -> Keys:
    """A key a row, equal for rows equal in every column. Shape [N]."""
    keys = np.zeros(len(x), np.uint64)
    for j in range(x.shape[1]):
        keys += column_hash(x, j)
    return keys


def column_hash(x: NDArray[np.float32], j: int) -> Keys:
    """What a column adds to the rows' keys: the finaliser of SplitMix64 over its bits (Steele et
    al., OOPSLA 2014). Shape [N]."""
    column = x[:, j] + np.float32(0)  # -0 equals 0
    column[np.isnan(column)] = np.nan  # and there is one NaN
    z = column.view(np.uint32) + np.uint64(((j + 1) * 0x9E3779B97F4A7C15) % (1 << 64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _without(keys: Keys, x: NDArray[np.float32], left_out: Sequence[int]) -> Keys:
    keys = keys.copy()
    for j in left_out:
        keys -= column_hash(x, j)
    return keys


def _limits(num_rows: int, num_columns: int) -> Iterator[str]:
    if num_columns > MAX_PAIR_COLUMNS:
        yield (
            f"near duplicates: with {num_columns} columns only one at a time was left out of the "
            "comparison, not two"
        )
    if num_rows > MAX_COMPARED:
        yield (
            f"near duplicates: about {MAX_COMPARED:,} of {num_rows:,} rows were compared for each "
            "choice of columns"
        )


def _compared(
    keys: Keys, x: NDArray[np.float32]
) -> Iterator[tuple[tuple[int, ...], Keys, NDArray[np.bool_]]]:
    """Leave out no column, each one, each two: which, the keys compared, and whose they are [N]."""
    share = MAX_COMPARED / len(keys)
    limit = np.uint64(min(share, 1.0) * (2**64 - 2**12))
    for columns, chosen in _left_out(keys, x):
        compared = chosen <= limit if share < 1 else np.ones(len(keys), bool)
        yield columns, chosen[compared], compared


def _left_out(keys: Keys, x: NDArray[np.float32]) -> Iterator[tuple[tuple[int, ...], Keys]]:
    """Leave out no column, each one, each two: which, and the keys of the others [N]."""
    num_columns = x.shape[1]
    most = min(2 if num_columns <= MAX_PAIR_COLUMNS else 1, num_columns - MIN_COLUMNS_LEFT)
    yield (), keys
    if most >= 1:
        for j in range(num_columns):
            yield (j,), keys - column_hash(x, j)
    if most >= 2:
        for j in range(num_columns):
            without_j = keys - column_hash(x, j)
            for k in range(j + 1, num_columns):
                yield (j, k), without_j - column_hash(x, k)


def _merge_groups(
    x: NDArray[np.float32], keys: Keys, group: NDArray[np.int64], num_groups: int
) -> tuple[NDArray[np.int64], list[int]]:
    """The first of the groups each is merged with, shape [G], and columns left out to see it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.empty((0, 2), np.int64)
    root = np.arange(num_groups)
    left_out: set[int] = set()
    for columns, sample, compared in _compared(keys, x):
        ordered = np.sort(sample)
        if np.sum(ordered[1:] == ordered[:-1]) < MIN_GROUP_ROWS:
            continue
        found = _repeating_groups(sample, group[compared], num_groups)
        found = found[root[found[:, 0]] != root[found[:, 1]]]
        if not len(found):
            continue
        left_out |= set(columns)
        pairs = np.concatenate([pairs, found])
        graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(num_groups, num_groups))
        _, component = connected_components(graph, directed=False)
        _, first = np.unique(component, return_index=True)
        root = first[component]
    return root, sorted(left_out)


def _repeating_groups(keys: Keys, group: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """Pairs of groups of which one repeats at least half of the other's rows, shape [pairs, 2].

    What two groups share is counted in different keys: a sensor at rest repeats itself, not others.
    """
    order = np.lexsort((group, keys))
    keys, group, sizes = keys[order], group[order], np.bincount(group, minlength=num_groups)
    shared = (keys[1:] == keys[:-1]) & (group[1:] != group[:-1])
    pairs = np.sort(np.stack([group[:-1][shared], group[1:][shared]], axis=1), axis=1)
    pairs, num_shared = np.unique(pairs, axis=0, return_counts=True)
    enough = np.maximum(GROUP_OVERLAP * sizes[pairs].min(axis=1), MIN_GROUP_ROWS)
    return pairs[num_shared >= enough]


def _merge_rows(x: NDArray[np.float32], keys: Keys) -> tuple[NDArray[np.int64], list[int]]:
    """A code for each set of rows that repeat each other, shape [N], and the columns left out."""
    best: tuple[int, ...] = ()
    best_share = exact_share = 0.0
    for columns, sample, _ in _compared(keys, x):
        if len(columns) > 1 and len(best) == 1:
            break  # one column explains it
        ordered = np.sort(sample)
        share = float(np.mean(ordered[1:] == ordered[:-1])) if len(ordered) > 1 else 0.0
        if not columns:
            exact_share = share
        elif best_share < share <= 1 - MIN_DISTINCT_SHARE and share >= exact_share + MIN_ROW_SHARE:
            best, best_share = columns, share
    return np.unique(_without(keys, x, best), return_inverse=True)[1], list(best)
