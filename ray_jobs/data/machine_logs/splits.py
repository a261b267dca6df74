"""Splits of windows: by whole runs, by whole operations, or as the earlier work shuffled them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.spec import MachineSplit
from ray_jobs.errors import DataError

_TRAIN, _VAL, _TEST = range(len(SPLITS))


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
    """Each operation in train, and as far as its runs go in val and in test."""
    of_run: dict[int, int] = {}
    totals = [0, 0, 0]
    for operation in sorted({operation for operation, _ in runs.values()}):
        members = sorted(
            (i for i, (of, _) in runs.items() if of == operation), key=lambda i: runs[i][1]
        )
        members = _generator(seed, operation).permutation(members).tolist()
        num_val, num_test = _held_out(len(members), split, fewer_test=totals[_TEST] < totals[_VAL])
        assigned = [_VAL] * num_val + [_TEST] * num_test
        assigned += [_TRAIN] * (len(members) - len(assigned))
        of_run |= zip(members, assigned, strict=True)
        for s in assigned:
            totals[s] += 1
    for s in (_VAL, _TEST):
        if not totals[s]:
            raise DataError(
                f"data.split=by_run leaves {SPLITS[s]} empty: no operation has enough runs "
                f"({len(runs)} runs of {len({of for of, _ in runs.values()})} operations; three of "
                "one operation are the least). Add runs, set data.operation_pattern so that runs "
                "of one program share a name, or take data.split=by_operation"
            )
    return of_run


def _held_out(num_runs: int, split: MachineSplit, *, fewer_test: bool) -> tuple[int, int]:
    """How many of an operation's runs go to val and to test; at least one stays in train."""
    if num_runs < len(SPLITS):
        return (0, num_runs - 1) if fewer_test else (num_runs - 1, 0)
    num_val = max(1, round(num_runs * split.val))
    num_test = max(1, round(num_runs * split.test))
    while num_val + num_test >= num_runs:
        num_val, num_test = (num_val - 1, num_test) if num_val > 1 else (num_val, num_test - 1)
    return num_val, num_test


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
    num_val, num_test = _held_out(len(order), split, fewer_test=False)
    of_operation = {
        name: _VAL if k < num_val else _TEST if k < num_val + num_test else _TRAIN
        for k, name in enumerate(order)
    }
    return {i: of_operation[operation] for i, operation in runs.items()}


def _shuffled_windows(
    num_windows: int, split: MachineSplit, rng: np.random.Generator
) -> NDArray[np.int8]:
    cuts = np.cumsum([split.train, split.val]) * num_windows
    position = np.empty(num_windows)
    position[rng.permutation(num_windows)] = np.arange(num_windows)
    return np.searchsorted(np.round(cuts), position, side="right").astype(np.int8)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Of one operation: which other operations there are does not move its runs."""
    head = hashlib.sha256(name.encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(head, "big")])
