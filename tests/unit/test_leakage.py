from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_jobs.data.dataset import Rows
from ray_jobs.data.leakage import find_leaks, refuse_leaks
from ray_jobs.errors import DataError


def rows_with(leak: NDArray[Any], y: NDArray[np.int8]) -> Rows:
    index = np.arange(len(y))
    noise = np.random.default_rng(1).normal(size=len(y))
    x = np.stack([noise, leak], axis=1).astype(np.float32)
    return Rows(x=x, y=y, group=index, row_id=index, features=("noise", "alarm"))


@pytest.fixture
def y() -> NDArray[np.int8]:
    return (np.random.default_rng(0).random(2000) < 0.1).astype(np.int8)


def test_a_column_that_is_the_label_is_refused_by_name(y: NDArray[np.int8]) -> None:
    rows = rows_with(3 - 2 * y, y)
    leaks = find_leaks(rows.take(slice(1500)), rows.take(slice(1500, None)), allowed=[], seed=0)
    assert [(leak.column, leak.auc, leak.refused) for leak in leaks] == [("alarm", 1.0, True)]
    with pytest.raises(DataError) as raised:
        refuse_leaks(leaks)
    assert str(raised.value) == (
        "the label is given away by 'alarm': a tree on 'alarm' alone, first cut at 2, reaches AUC "
        "1.0000 and balanced accuracy 1.0000 on validation (train: 1.0000 and 1.0000). Leave such "
        "columns out of data.feature_columns, or keep them on purpose with "
        "data.allow_leaks=['alarm']"
    )


def test_an_allowed_leak_is_reported_and_kept(y: NDArray[np.int8]) -> None:
    rows = rows_with(y, y)
    leaks = find_leaks(rows, rows, allowed=["alarm"], seed=0)
    assert [(leak.column, leak.refused) for leak in leaks] == [("alarm", False)]
    refuse_leaks(leaks)


def test_a_good_column_is_reported_and_not_refused(y: NDArray[np.int8]) -> None:
    rows = rows_with(y + np.random.default_rng(2).normal(0, 0.3, len(y)), y)
    leaks = find_leaks(rows.take(slice(1500)), rows.take(slice(1500, None)), allowed=[], seed=0)
    assert [(leak.column, leak.refused) for leak in leaks] == [("alarm", False)]
    assert 0.9 < leaks[0].auc < 0.999


def test_what_holds_in_train_alone_is_no_leak(y: NDArray[np.int8]) -> None:
    train = rows_with(y, y)
    val = rows_with(np.random.default_rng(3).permutation(y), y)
    assert find_leaks(train, val, allowed=[], seed=0) == []


def test_what_holds_nearly_always_in_val_is_reported(y: NDArray[np.int8]) -> None:
    rarely_wrong = np.where(np.arange(len(y)) % 50 == 0, 1 - y, y)
    leaks = find_leaks(rows_with(y, y), rows_with(rarely_wrong, y), allowed=[], seed=0)
    assert [(leak.column, leak.refused) for leak in leaks] == [("alarm", False)]


def test_a_handful_of_rows_proves_nothing(y: NDArray[np.int8]) -> None:
    rows = rows_with(y, y)
    few = rows.take(np.r_[np.flatnonzero(y)[:9], np.flatnonzero(y == 0)])
    assert [leak.refused for leak in find_leaks(rows, few, allowed=[], seed=0)] == [False]


def test_a_rare_class_outlives_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.data.leakage.MAX_CLASS_ROWS", 50)
    y = np.zeros(100_000, np.int8)
    y[::5000] = 1
    rows = rows_with(y, y)
    assert [leak.refused for leak in find_leaks(rows, rows, allowed=[], seed=0)] == [True]
