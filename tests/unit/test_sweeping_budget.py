"""What a sweep takes, against sweeps that were played through."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import PreflightError
from ray_jobs.sweeping.budget import Epochs, count_epochs, trials_side_by_side
from ray_jobs.sweeping.rungs import Rungs, rungs_of
from ray_jobs.sweeping.schedule import Schedule
from ray_jobs.sweeping.spec import SweepSpec


def spec(**keys: Any) -> SweepSpec:
    return SweepSpec.model_validate({"space": {"model.dropout": {"values": [0.0, 0.1]}}, **keys})


def played(of: SweepSpec, values: Sequence[float], num_slots: int) -> int:
    """Epochs that all trials train, if each has the same value on every rung."""
    rungs = rungs_of(of)
    schedule = Schedule(
        Rungs(rungs, of.reduction_factor, "max"), num_trials=of.num_trials, num_slots=num_slots
    )
    reached = [0] * of.num_trials
    while not schedule.is_over:
        for trial in list(schedule.wanted()):
            level = sum(each.trial == trial for each in schedule.promotions)
            reached[trial] = rungs[level]
            schedule.finish(trial, level, values[trial])
    return sum(reached)


@given(
    num_trials=st.integers(1, 40),
    grace_epochs=st.integers(1, 4),
    times=st.integers(1, 30),
    reduction_factor=st.integers(2, 4),
    num_slots=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_no_sweep_takes_less_or_more(
    num_trials: int,
    grace_epochs: int,
    times: int,
    reduction_factor: int,
    num_slots: int,
    seed: int,
) -> None:
    of = spec(
        num_trials=num_trials,
        grace_epochs=grace_epochs,
        max_epochs=grace_epochs * times,
        reduction_factor=reduction_factor,
    )
    values = random.Random(seed).sample(range(num_trials), num_trials)
    epochs = count_epochs(of)
    assert epochs.least <= played(of, values, num_slots) <= epochs.most <= epochs.full
    assert played(of, sorted(values), 1) == epochs.most
    assert played(of, sorted(values, reverse=True), 1) == epochs.least


def test_by_hand() -> None:
    small = {"num_trials": 9, "grace_epochs": 2, "max_epochs": 18, "reduction_factor": 3}
    # 9 to epoch 2; 3 or 7 of them to 6; 1 or 5 of those to 18
    assert count_epochs(spec(**small)) == Epochs(18 + 12 + 12, 18 + 28 + 60, 162)
    # the first to come goes on, or all do
    assert count_epochs(spec(**small, scheduler="asha")) == Epochs(18 + 4 + 12, 162, 162)
    assert count_epochs(spec(**small, scheduler="none")) == Epochs(162, 162, 162)


@pytest.mark.parametrize(
    ("keys", "num_cpus", "num_gpus", "expected"),
    [
        ({}, 2, 0, 2),
        ({"cpus_per_trial": 0.5}, 2, 0, 4),
        ({"cpus_per_trial": 0.1}, 0.3, 0, 3),
        ({"max_concurrent_trials": 1}, 2, 0, 1),
        ({"num_trials": 3}, 16, 0, 3),
        ({"gpus_per_trial": 0.25}, 16, 1, 4),
    ],
)
def test_trials_side_by_side(
    keys: dict[str, Any], num_cpus: float, num_gpus: float, expected: int
) -> None:
    assert trials_side_by_side(spec(**keys), num_cpus=num_cpus, num_gpus=num_gpus) == expected


def test_no_trial_fits() -> None:
    with pytest.raises(PreflightError) as caught:
        trials_side_by_side(spec(gpus_per_trial=1), num_cpus=8, num_gpus=0)
    assert str(caught.value) == ("a trial asks for 1 GPU and Ray has 0; lower sweep.gpus_per_trial")
