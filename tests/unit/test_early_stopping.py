from __future__ import annotations

import math

from ray_jobs.result import Objective
from ray_jobs.training.early_stopping import DEGENERATE_EPOCHS, EarlyStopping

F1 = Objective(metric="f1", mode="max")
LOSS = Objective(metric="log_loss", mode="min")


def feed(stopping: EarlyStopping, values: list[float]) -> int:
    """Epochs until it stops."""
    metric = stopping.objective.metric
    for epoch, value in enumerate(values, start=1):
        stopping.update(epoch, {metric: value, "other": value + epoch})
        if stopping.should_stop:
            return epoch
    return len(values)


def test_stops_after_patience_epochs_without_a_better_objective() -> None:
    stopping = EarlyStopping(F1, patience=3)
    assert feed(stopping, [0.1, 0.3, 0.3, 0.2, 0.25, 0.9]) == 5
    assert (stopping.best, stopping.best_epoch) == (0.3, 2)
    assert not stopping.is_degenerate


def test_the_mode_decides_what_is_better() -> None:
    stopping = EarlyStopping(LOSS, patience=2)
    assert feed(stopping, [0.9, 0.5, 0.6, 0.4, 0.5, 0.5]) == 6
    assert stopping.best_epoch == 4


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    stopping = EarlyStopping(LOSS, patience=2)
    assert feed(stopping, [math.nan, math.inf]) == 2
    assert stopping.best is None


def test_metrics_that_stand_still_are_degenerate() -> None:
    stopping = EarlyStopping(F1, patience=100)
    for epoch in range(1, DEGENERATE_EPOCHS + 1):
        assert not stopping.should_stop
        stopping.update(epoch, {"f1": 0.0, "val_loss": 0.69})
    assert stopping.is_degenerate
    assert stopping.should_stop


def test_an_objective_alone_may_stand_still() -> None:
    stopping = EarlyStopping(F1, patience=100)
    for epoch in range(1, 20):
        stopping.update(epoch, {"f1": 0.0, "val_loss": 1 / epoch})
    assert not stopping.should_stop
