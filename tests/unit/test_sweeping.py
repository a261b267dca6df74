"""The sweep without Ray: spec, proposals, rungs, and a schedule that timing and kills cannot
change."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.result import Objective
from ray_jobs.storage import Storage
from ray_jobs.sweeping.progress import Progress
from ray_jobs.sweeping.records import Records, TrialRecord, read_trial
from ray_jobs.sweeping.result import find_winner
from ray_jobs.sweeping.rungs import Rung, Rungs, rung_epochs
from ray_jobs.sweeping.schedule import Promotion, Schedule
from ray_jobs.sweeping.search import Observation, check_search, propose, propose_tpe
from ray_jobs.sweeping.spec import Distribution, SweepSpec
from ray_jobs.sweeping.trial import TrialContext

SPACE: dict[str, Any] = {
    "model.hidden_dim": {"values": [192, 256, 320, 384]},
    "train.learning_rate": {"low": 4e-5, "high": 8e-5, "log": True},
    "model.num_layers": {"low": 2, "high": 4, "integer": True},
}


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.model_validate({"space": SPACE, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "the space is empty; name at least one key, such as train.batch_size"),
        (
            {"space": {"lr": {"values": [1]}}},
            "'lr' is not a dotted key of the job description, such as train.learning_rate",
        ),
        (
            {"space": {"a.b": {"low": 2, "high": 1}}},
            "low must be below high, but 2 is not below 1",
        ),
        (
            {"space": {"a.b": {"low": 0, "high": 1, "log": True}}},
            "log needs low above 0, but low is 0",
        ),
        (
            {"space": {"a.b": {"values": []}}},
            "values is empty; list at least one, such as [16, 32]",
        ),
        (
            {"space": {"a.b": {"values": [1, 1]}}},
            "values repeats itself: [1, 1]; list each value once",
        ),
        (
            {"space": {"a.b": {"low": 1}}},
            "say what to try: {values: [16, 32]} or {low: 1e-5, high: 1e-3, log: true}",
        ),
        (
            {"space": {"a.b": {"values": [1], "log": True}}},
            "give either values, or low and high with log and integer",
        ),
        (
            {"space": {"a.b": {"low": 0.5, "high": 2, "integer": True}}},
            "integer needs whole numbers at both ends, not 0.5 and 2",
        ),
        (
            {"grace_epochs": 300},
            "grace_epochs (300) exceeds max_epochs (200): no trial could ever be parked; lower "
            "grace_epochs or raise max_epochs",
        ),
        ({"reduction_factor": 1}, "Input should be greater than or equal to 2"),
    ],
)
def test_a_spec_that_cannot_be_swept_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(**changes)
    (fault,) = caught.value.errors()
    assert fault["msg"].removeprefix("Value error, ") == message


def test_the_shipped_settings() -> None:
    shipped = spec()
    assert (shipped.num_trials, shipped.scheduler, shipped.search) == (40, "pausing_asha", "random")
    assert rung_epochs(shipped.grace_epochs, shipped.max_epochs, shipped.reduction_factor) == [
        50,
        150,
        200,
    ]
    assert rung_epochs(5, 5, 3) == [5]
    assert rung_epochs(1, 9, 3) == [1, 3, 9]


def test_a_proposal_depends_on_the_seed_and_the_trial_alone() -> None:
    space = spec().space
    reordered = dict(reversed(space.items()))
    assert propose(space, seed=3, trial=7) == propose(reordered, seed=3, trial=7)
    configs = [propose(space, seed=3, trial=trial) for trial in range(300)]
    assert len({tuple(config.items()) for config in configs}) == 300
    assert propose(space, seed=4, trial=0) != configs[0]


@given(
    low=st.floats(1e-6, 1e3),
    width=st.floats(1.01, 1e4),
    is_log=st.booleans(),
    is_integer=st.booleans(),
    trial=st.integers(0, 99),
)
def test_a_proposal_lies_within_its_range(
    low: float, width: float, is_log: bool, is_integer: bool, trial: int
) -> None:
    if is_integer:
        low, high = float(math.ceil(low)), float(math.ceil(low) + math.ceil(width))
    else:
        high = low * width
    distribution = Distribution(low=low, high=high, log=is_log, integer=is_integer)
    value = propose({"a.b": distribution}, seed=0, trial=trial)["a.b"]
    assert isinstance(value, int) == is_integer
    assert low <= value <= high


def test_every_value_and_each_end_of_a_range_is_proposed() -> None:
    configs = [propose(spec().space, seed=0, trial=trial) for trial in range(200)]
    assert {config["model.hidden_dim"] for config in configs} == {192, 256, 320, 384}
    counts = [sum(config["model.num_layers"] == n for config in configs) for n in (2, 3, 4)]
    assert min(counts) > 45  # of 67 expected each
    below_the_middle = sum(config["train.learning_rate"] < 4e-5 * 2**0.5 for config in configs)
    assert 80 < below_the_middle < 120  # the middle of the logarithm


def test_tpe_without_optuna_is_refused() -> None:
    check_search(spec())
    if importlib.util.find_spec("optuna"):
        check_search(spec(search="tpe"))
        return
    with pytest.raises(SpecError) as caught:
        check_search(spec(search="tpe"))
    assert str(caught.value) == (
        "sweep.search: tpe needs Optuna; pip install optuna, or set sweep.search to random"
    )


def test_tpe_goes_where_the_best_trials_were() -> None:
    space = {
        "a.x": Distribution(low=0.0, high=1.0),
        "a.y": Distribution(values=["left", "right"]),
        "a.n": Distribution(low=1, high=64, log=True, integer=True),
    }

    def observe(trial: int) -> Observation:
        config = propose(space, seed=0, trial=trial)
        return Observation(config, 50, -abs(float(config["a.x"]) - 0.9), trial % 3 == 0)

    seen = [observe(trial) for trial in range(40)]
    proposals = [
        propose_tpe(space, seen, seed=1, trial=trial, mode="max") for trial in range(40, 80)
    ]
    assert proposals[0] == propose_tpe(space, seen, seed=1, trial=40, mode="max")
    assert sum(float(each["a.x"]) > 0.7 for each in proposals) > 20  # 12 by chance


def test_asha_as_in_the_paper() -> None:
    """Algorithm 2 of Li et al. 2018 by hand, one worker, eta 3, rungs at 1, 3 and 9 epochs:
    (trial, value on the first rung); -> is a promotion, with the value on the next rung.

    0 .5, 1 .7, 2 .6 (best of 3: 1) -> 1 .75; 3 .9 (best of 4: 3) -> 3 .92; 4 .8, 5 .4 (best two of
    6: 3, 4) -> 4 .95, which is the best of 3 on the second rung -> 4; 6 .3, 7 .2, 8 .1 (best three
    of 9: 3, 4, 1, all promoted).
    """
    values = {
        0: [0.5, 0.7, 0.6, 0.9, 0.8, 0.4, 0.3, 0.2, 0.1],
        1: {1: 0.75, 3: 0.92, 4: 0.95},
        2: {4: 0.97},
    }
    schedule = Schedule(Rungs([1, 3, 9], 3, "max"), num_trials=9, num_slots=1)
    order = []
    while not schedule.is_over:
        (trial,) = schedule.wanted()
        level = sum(each.trial == trial for each in schedule.promotions)
        order.append((trial, level))
        schedule.finish(trial, level, values[level][trial])
    assert order == [
        (0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (3, 1), (4, 0), (5, 0), (4, 1), (4, 2), (6, 0),
        (7, 0), (8, 0),
    ]  # fmt: skip
    assert schedule.promotions == [
        Promotion(1, 1, 3, 0.7),
        Promotion(3, 1, 3, 0.9),
        Promotion(4, 1, 3, 0.8),
        Promotion(4, 3, 9, 0.95),
    ]


def test_the_highest_rung_promotes_first() -> None:
    rungs = Rungs([1, 2, 4], 2, "max")
    for trial, value in enumerate([0.1, 0.9, 0.8, 0.2]):
        rungs.record(trial, 0, value)
    for trial, value in ((1, 0.9), (2, 0.8)):
        assert rungs.promotable() == (trial, 0)
        rungs.promote(trial, 0)
        rungs.record(trial, 1, value)
    rungs.record(4, 0, 0.95)
    rungs.record(5, 0, 0.1)
    assert rungs.candidates(0) == [4, 1, 2]
    assert rungs.promotable() == (1, 1)
    rungs.promote(1, 1)
    assert rungs.promotable() == (4, 0)


def test_equal_values_failures_and_losses() -> None:
    rungs = Rungs([1, 3], 2, "min")
    for trial, value in enumerate([0.5, None, 0.5, 0.7]):
        rungs.record(trial, 0, value)
    assert rungs.candidates(0) == [0, 2]
    failed = Rungs([1, 3], 2, "max")
    for trial in range(4):
        failed.record(trial, 0, None)
    assert failed.promotable() is None


@given(st.data())
def test_whoever_is_promoted_is_among_the_best_of_its_rung(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["max", "min"]))
    eta = data.draw(st.integers(2, 4))
    rungs = Rungs([1, eta, eta**2], eta, mode)
    sign = 1 if mode == "max" else -1
    for trial in range(data.draw(st.integers(0, 30))):
        rungs.record(trial, 0, data.draw(st.none() | st.integers(0, 9)))
        while (promotable := rungs.promotable()) is not None:
            promoted, level = promotable
            values = rungs.rungs[level].values
            own = values[promoted]
            assert own is not None
            better = sum(sign * v > sign * own for v in values.values() if v is not None)
            assert better < len(values) // eta
            rungs.promote(promoted, level)
            rungs.record(promoted, level + 1, data.draw(st.integers(0, 9)))
        for level in range(2):
            assert set(rungs.candidates(level)) <= set(rungs.rungs[level].promoted)
    for rung in rungs.rungs:
        assert len(set(rung.promoted)) == len(rung.promoted)
        assert Rung.model_validate_json(rung.model_dump_json()) == rung


class Trials:
    """Made-up trials: the value of each at each rung, and where it ends early or fails."""

    def __init__(self, random: Random, num_trials: int, num_levels: int):
        self.values = [[random.randint(0, 9) for _ in range(num_levels)] for _ in range(num_trials)]
        self.ends = [random.choice([None] * 6 + [*range(num_levels)]) for _ in range(num_trials)]
        self.fails = [random.random() < 0.3 for _ in range(num_trials)]

    def tell(self, schedule: Schedule, trial: int, level: int) -> None:
        if self.ends[trial] == level:
            schedule.end(trial, None if self.fails[trial] else self.values[trial][level])
        else:
            schedule.finish(trial, level, self.values[trial][level])


def play(
    trials: Trials, make: Any, random: Random, num_workers: int, kill_rate: float, runs_ahead: bool
) -> Schedule:
    """Workers of random speed, and now and then a new process with only what was told before."""
    schedule: Schedule = make()
    told: list[tuple[int, int]] = []
    while not schedule.is_over:
        reached = {trial: 1 + max(lv for t, lv in told if t == trial) for trial, _ in told}
        waiting = [*schedule.wanted(), *(schedule.ahead() if runs_ahead else ())]
        trial = random.choice(waiting[:num_workers])
        told.append((trial, reached.get(trial, 0)))
        trials.tell(schedule, *told[-1])
        if random.random() < kill_rate:
            schedule = make()
            for number in random.sample(sorted(reached | {trial: 0}), len(reached | {trial: 0})):
                for known in sorted(each for each in told if each[0] == number):
                    trials.tell(schedule, *known)
    return schedule


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_trials=st.integers(1, 25),
    num_slots=st.integers(1, 5),
    num_workers=st.integers(1, 6),
    runs_ahead=st.booleans(),
)
def test_neither_timing_nor_kills_change_the_promotions(
    seed: int, num_trials: int, num_slots: int, num_workers: int, runs_ahead: bool
) -> None:
    random = Random(seed)
    trials = Trials(random, num_trials, 3)

    def make() -> Schedule:
        return Schedule(Rungs([2, 6, 9], 3, "max"), num_trials=num_trials, num_slots=num_slots)

    plain = play(trials, make, Random(0), 1, 0.0, runs_ahead=False)
    other = play(trials, make, random, num_workers, 0.2, runs_ahead)
    assert other.promotions == plain.promotions
    assert other.rungs.rungs == plain.rungs.rungs
    assert len(plain.rungs.rungs[0].values) == num_trials


def test_starts_are_told_in_the_order_of_the_clock() -> None:
    started: list[int] = []
    schedule = Schedule(Rungs([1, 3], 2, "max"), num_trials=4, num_slots=2, on_start=started.append)
    assert started == [0, 1]
    schedule.finish(1, 0, 0.5)  # early: the clock waits for trial 0
    assert started == [0, 1]
    assert list(schedule.ahead()) == [2, 3]
    schedule.finish(0, 0, 0.4)
    assert started == [0, 1, 2]
    assert schedule.promotions == [Promotion(1, 1, 3, 0.5)]


def test_records_are_read_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    records = Records(storage, "w/r", 3, lambda trial: {"a.b": trial})
    records.open(1)
    for epoch, value in enumerate([0.1, None, 0.3, 0.2], start=1):
        records.report(1, epoch, value)
    records.report(1, 2, 0.9)  # known: said again by an attempt that did not know
    assert records.open(1) is records.trials[1]
    again = Records(storage, "w/r", 3, lambda trial: {})
    assert (
        again.trials
        == records.trials
        == {1: TrialRecord(config={"a.b": 1}, values=[0.1, None, 0.3, 0.2])}
    )
    record = again.trials[1]
    assert (record.best("max"), record.best_epoch("max")) == (0.3, 3)
    assert (record.best("min"), record.best_epoch("min")) == (0.1, 1)
    assert record.best("max", within=2) == 0.1
    assert TrialRecord(config={}, values=[None]).best("max") is None
    storage.write_text("w/r/checkpoints/trials/0001/trial.json", '{"config": {}, "epochs": 3}')
    with pytest.raises(JobFailed) as caught:
        read_trial(storage, "w/r", 1)
    assert str(caught.value) == (
        f"{tmp_path}/w/r/checkpoints/trials/0001/trial.json is not of this version: epochs: Extra "
        "inputs are not permitted; take another --run-id"
    )


@pytest.mark.parametrize(("search", "opened"), [("tpe", [0, 1, 2]), ("random", [0, 1])])
def test_a_sweep_is_taken_up_from_its_records(
    tmp_path: Path, search: str, opened: list[int]
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []

    def begin() -> Progress:
        progress = Progress(
            spec(num_trials=8, max_epochs=2, grace_epochs=1, reduction_factor=2, search=search),
            Objective(metric="loss", mode="min"),
            0,
            Storage(tmp_path),
            "w/r",
            lambda event, **fields: events.append((event, fields)),
        )
        progress.prepare(2)
        return progress

    first = begin()
    for trial in (0, 1):
        first.records.open(trial)
        first.records.report(trial, 1, 0.5 - trial)
    second = begin()  # killed before the rungs were written: the records lead there
    assert second.rungs.rungs[0].values == {0: 0.5, 1: -0.5}
    assert events == [
        ("trial_promoted", {"trial": "0001", "epoch": 1, "to_epoch": 2, "value": -0.5})
    ]
    assert sorted(second.records.trials) == opened  # a proposal by TPE waits for the clock
    assert list(second.schedule.wanted()) == [2, 1]
    third = begin()
    assert len(events) == 1  # told once
    assert third.rungs.rungs == second.rungs.rungs
    assert third.schedule.promotions == second.schedule.promotions


def test_the_winner_has_the_best_value_and_did_not_fail() -> None:
    trials = {
        0: TrialRecord(config={}, values=[0.2], status="STOPPED"),
        1: TrialRecord(config={}, values=[0.9], status="FAILED", reason="out of memory"),
        2: TrialRecord(config={}, values=[0.5, 0.1], status="SUCCEEDED"),
        3: TrialRecord(config={}, values=[0.5], status="STOPPED"),
    }
    assert find_winner(trials, "max") == 2
    assert find_winner(trials, "min") == 2
    with pytest.raises(JobFailed) as caught:
        find_winner({1: trials[1]}, "max")
    assert str(caught.value) == "all 1 trials of the sweep failed; the first: out of memory"


def test_a_trial_reports_every_epoch_once(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []
    context = TrialContext(
        "0007", Storage(tmp_path), "f", 9, (1, 3, 9), 1.0, "min", sent.append, [0.5, 0.4]
    )
    context.report(1, 0.5)
    context.report(2, 0.4)
    assert sent == []
    context.report(3, 0.6, {"loss": 2.0})
    context.report(4, math.inf)
    assert [(each["epoch"], each["best"], each["metrics"]) for each in sent] == [
        (3, 0.4, {"loss": 2.0}),
        (4, 0.4, {}),
    ]
    assert math.isnan(sent[1]["value"])
    with pytest.raises(ValueError, match="trial 0007 reports epoch 6 after 4") as caught:
        context.report(6, 0.1)
    assert str(caught.value) == (
        "trial 0007 reports epoch 6 after 4: report every epoch from TrialContext.last_epoch + 1 "
        "on, out of the checkpoint's history where the checkpoint is ahead"
    )
    context.end()
    assert (sent[-1]["ended"], sent[-1]["epoch"]) == (True, 4)
