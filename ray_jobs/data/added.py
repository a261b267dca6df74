"""Added tables: labelled rows for train alone. Val and test stay as they are without them, so that
models trained before and after can be compared.

Shapes: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS, Rows
from ray_jobs.data.duplicates import GROUP_OVERLAP, MIN_GROUP_ROWS, repeats_of
from ray_jobs.data.readings import Readings, read_added
from ray_jobs.data.spec import DataSpec
from ray_jobs.data.table import DataFile, content_digest, find_files
from ray_jobs.errors import DataError

_TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class AddedTable:
    """One entry of data.added."""

    uri: str
    files: list[DataFile]

    def digest(self) -> str:
        """sha256 of the files' names and bytes."""
        return content_digest(self.files)


@dataclass(frozen=True)
class Extended:
    """A table's rows with those added behind them."""

    rows: Rows
    split: NDArray[np.int8]  # [N]
    independent: NDArray[np.int64]  # [N]
    num_added: int = 0
    num_withheld: int = 0
    num_dropped: int = 0  # under data.nonfinite
    num_imputed: int = 0  # cells
    notes: tuple[str, ...] = ()


@contextmanager
def naming_added() -> Iterator[None]:
    """What reads data.path reads data.added, too: its messages shall name that."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("data.path", "data.added")) from None


def find_tables(uris: Sequence[str]) -> list[AddedTable]:
    """The files of each entry of data.added.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    with naming_added():
        return [AddedTable(uri, find_files(uri)) for uri in uris]


def extend(
    base: Readings,
    split: NDArray[np.int8],
    independent: NDArray[np.int64],
    tables: Sequence[AddedTable],
    data: DataSpec,
    impute: Callable[[Rows], int],
) -> Extended:
    """The rows of `base`, whose splits are made, and behind them those added, all in train.

    Left out are rows that val or test holds: by content, exactly or nearly; by `data.id_column`;
    and with all of their group if that is a group of val or test, by `data.group_column` or because
    half of it is known from there.

    Args:
        base: its rows in their order; no NaN.
        split, independent: of those rows, shape [N].
        impute: fills in NaN cells, in place, as it did those of `base`; returns how many.

    Raises:
        DataError: a table cannot be used; names the file and the fix.
    """
    held_out = base.rows.take(split != _TRAIN)
    train_x = base.rows.x[split == _TRAIN]
    parts, notes = [base.rows], []
    num_withheld = num_dropped = num_imputed = 0
    for table in tables:
        with naming_added():
            added = read_added(table.files, data, base)
        num_imputed += impute(added.rows)
        is_known = _known(added, base, held_out, train_x, data)
        if is_known.all():
            raise DataError(
                f"{table.uri}: nothing of it can be trained on: of its {len(added.rows)} rows "
                "each repeats one of val or test. Name other data in data.added"
            )
        rows = added.rows.take(~is_known)
        notes.append(
            f"data.added: {len(rows)} rows of {table.uri} went to train; {is_known.sum()} were "
            "left out, for val or test has them, or others recorded with them"
        )
        parts.append(_stand_alone(rows) if base.name_group is None else rows)
        num_withheld += int(is_known.sum())
        num_dropped += added.num_dropped
    whole = _joined(parts)
    num_added = len(whole) - len(base.rows)
    behind = whole.group[len(base.rows) :]
    return Extended(
        rows=whole,
        split=np.r_[split, np.full(num_added, _TRAIN, np.int8)],
        independent=np.r_[independent, behind + independent.max() + 1],
        num_added=num_added,
        num_withheld=num_withheld,
        num_dropped=num_dropped,
        num_imputed=num_imputed,
        notes=tuple(notes),
    )


def _known(
    added: Readings, base: Readings, held_out: Rows, train_x: NDArray[np.float32], data: DataSpec
) -> NDArray[np.bool_]:
    """Which added rows val or test has, or has others of their group. Shape [N]."""
    rows = added.rows
    known = repeats_of(rows.x, held_out.x, train_x)
    if data.id_column:
        known |= np.isin(rows.row_id, held_out.row_id)
    if added.name_group is None:
        return known
    codes, index = np.unique(rows.group, return_inverse=True)
    num_known, sizes = np.bincount(index, known), np.bincount(index)
    is_recorded_there = num_known >= np.maximum(GROUP_OVERLAP * sizes, MIN_GROUP_ROWS)
    if data.group_column and base.name_group is not None:  # else codes are not names
        theirs = {base.name_group(int(code)) for code in np.unique(held_out.group)}
        is_recorded_there |= np.array([added.name_group(int(code)) in theirs for code in codes])
    return known | is_recorded_there[index]


def _stand_alone(rows: Rows) -> Rows:
    return replace(rows, group=np.arange(len(rows)))


def _joined(parts: Sequence[Rows]) -> Rows:
    """Rows one behind the other; groups and ids of the later ones are made their own."""
    base, *others = parts
    if not others:
        return base
    num_others = sum(len(part) for part in others)
    groups, first = [base.group], base.group.max() + 1
    for part in others:
        _, index = np.unique(part.group, return_inverse=True)
        groups.append(first + index)
        first += index.max() + 1
    free = np.setdiff1d(np.arange(len(base) + num_others), base.row_id)[:num_others]
    probability = base.true_probability
    if probability is not None:
        probability = np.r_[probability, np.full(num_others, np.nan, np.float32)]
    return replace(
        base,
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        group=np.concatenate(groups),
        row_id=np.r_[base.row_id, free],
        true_probability=probability,
    )
