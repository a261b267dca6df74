"""Splits of windows: by whole runs, by whole operations, or as the earlier work shuffled them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.spec import MachineSplit
from ray_jobs.errors import DataError

T = TypeVar("T")

_TRAIN, _VAL, _TEST = range(len(SPLITS))
_ROUNDING = 1e-9  # 3 x (1 / 3) is a whole seat


def assign_splits(
    run: NDArray[np.int64],
    names: Sequence[str],
    operations: Sequence[str],
    split: MachineSplit,
    *,
    seed: int,
) -> NDArray[np.int8]:
    """The index in `SPLITS` of each window's split, shape [N].

    Args:
        run: each window's run, an index into the next two; shape [N].
        names: of the runs.
        operations: of the runs.
        split: the protocol and its shares.
        seed: decides which runs, operations or windows go where.

    Raises:
        DataError: there are too few runs or operations for three splits.
    """
    if split.protocol == "published":
        return _shuffled_windows(len(run), split, np.random.default_rng(seed))
    present = np.unique(run).tolist()
    if split.protocol == "by_run":
        of_run = _by_run({i: (operations[i], names[i]) for i in present}, split, seed)
    else:
        of_run = _by_operation({i: operations[i] for i in present}, split, seed)
    return np.array([of_run[i] for i in run.tolist()], np.int8)


def _by_run(runs: dict[int, tuple[str, str]], split: MachineSplit, seed: int) -> dict[int, int]:
    """Whole runs, stratified by operation: each keeps one in train, and gives up as near its share
    as whole runs can, by largest remainders (Hamilton); val and test take them in turn."""
    operations = _shuffled(sorted({of for of, _ in runs.values()}), seed)
    members = {
        operation: _shuffled(
            sorted((i for i, (of, _) in runs.items() if of == operation), key=lambda i: runs[i][1]),
            seed,
            operation,
        )
        for operation in operations
    }
    spare = [len(members[operation]) - 1 for operation in operations]
    if sum(spare) < 2:
        raise DataError(
            f"data.split=by_run needs runs to spare for val and test, as each operation keeps one "
            f"in train, but there are {len(runs)} runs of {len(operations)} operations; three of "
            "one are the least, or two of two. Add runs, set data.operation_pattern so that runs "
            "of one program share a name, or take data.split=by_operation"
        )
    num_held = min(max(2, round(len(runs) * (split.val + split.test))), sum(spare))
    of_run = dict.fromkeys(runs, _TRAIN)
    taken = {_VAL: 0, _TEST: 0}
    for operation, num in zip(operations, _apportion(num_held, spare), strict=True):
        for run in members[operation][:num]:
            # The one further behind its share; test at first.
            into = _VAL if taken[_VAL] * split.test < taken[_TEST] * split.val else _TEST
            of_run[run] = into
            taken[into] += 1
    assert all(taken.values()), "two held out are one of each"
    return of_run


def _apportion(seats: int, sizes: Sequence[int]) -> list[int]:
    """Seats in proportion to sizes, whole ones by largest remainders; no more than the size."""
    quotas = np.array(sizes) * (seats / sum(sizes))
    given = np.floor(quotas + _ROUNDING).astype(int)
    ranked = np.argsort(given - quotas, kind="stable")  # of equals the earlier
    given[ranked[: seats - given.sum()]] += 1
    return given.tolist()


def _by_operation(runs: dict[int, str], split: MachineSplit, seed: int) -> dict[int, int]:
    """Whole operations: val and test hold programs that train has never seen."""
    operations = sorted(set(runs.values()))
    if len(operations) < len(SPLITS):
        raise DataError(
            f"data.split=by_operation needs three operations, but there is "
            f"{', '.join(map(repr, operations))}. Add runs of other operations, set "
            "data.operation_pattern, or take data.split=by_run"
        )
    order = np.random.default_rng(seed).permutation(operations).tolist()
    num_val, num_test = _held_out(len(order), split)
    of_operation = {
        name: _VAL if k < num_val else _TEST if k < num_val + num_test else _TRAIN
        for k, name in enumerate(order)
    }
    return {i: of_operation[operation] for i, operation in runs.items()}


def _held_out(num_operations: int, split: MachineSplit) -> tuple[int, int]:
    """How many operations go to val and to test; at least one stays in train."""
    num_val = max(1, round(num_operations * split.val))
    num_test = max(1, round(num_operations * split.test))
    while num_val + num_test >= num_operations:
        num_val, num_test = (num_val - 1, num_test) if num_val > 1 else (num_val, num_test - 1)
    return num_val, num_test


def _shuffled_windows(
    num_windows: int, split: MachineSplit, rng: np.random.Generator
) -> NDArray[np.int8]:
    cuts = np.cumsum([split.train, split.val]) * num_windows
    position = np.empty(num_windows)
    position[rng.permutation(num_windows)] = np.arange(num_windows)
    return np.searchsorted(np.round(cuts), position, side="right").astype(np.int8)


def _shuffled(items: list[T], seed: int, name: str = "") -> list[T]:
    """By the seed and a name of their own, so that one list's order does not move another's."""
    head = hashlib.sha256(name.encode()).digest()[:8]
    rng = np.random.default_rng([seed, int.from_bytes(head, "big")])
    return [items[i] for i in rng.permutation(len(items)).tolist()]
