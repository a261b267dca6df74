"""Sweeps on a real Ray Tune, with trials of no weight."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import ray_runtime
from ray_jobs.errors import JobFailed, PreflightError, SpecError, Stopped
from ray_jobs.result import Objective
from ray_jobs.sections import ResourceSpec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.rungs import Rungs
from ray_jobs.sweeping.schedule import Schedule
from ray_jobs.sweeping.spec import SweepSpec
from ray_jobs.sweeping.sweep import run_sweep
from ray_jobs.sweeping.trial import TrainTrial, TrialContext

pytestmark = pytest.mark.slow
ACCURACY = Objective(metric="accuracy", mode="max")
FOLDER = "toy/run"


@pytest.fixture(scope="module", autouse=True)
def private_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_runtime.session(ResourceSpec(num_cpus=2)):
            yield


def make_trial(*, fails: float = 2, stops_early: float = 2) -> TrainTrial:
    """A trial that keeps its values in a checkpoint and writes down each epoch that it trains.

    Args:
        fails: the x from which on trials fail in their second epoch.
        stops_early: the x from which on trials end after their second epoch.
    """

    def train(config: dict[str, Any], context: TrialContext) -> None:  # pickled with all it needs
        path, x = f"{context.folder}/values.json", config["train.x"]
        exists = context.storage.exists(path)
        values = json.loads(context.storage.read_text(path)) if exists else []
        context.storage.append_line("calls.txt", f"{context.trial_id} {len(values)}")
        for epoch, value in enumerate(values, start=1):
            context.report(epoch, value)
        for epoch in range(len(values) + 1, context.max_epochs + 1):
            if epoch > 2 and x >= stops_early:
                return
            if epoch == 2 and x >= fails:
                raise RuntimeError(f"x is {x:.3f}")
            values.append(x * (1 - 1 / (epoch + 1)))
            context.storage.write_text(path, json.dumps(values))
            context.storage.append_line("epochs.txt", f"{context.trial_id} {epoch}")
            context.report(epoch, values[-1], {"loss": 1 - values[-1]})

    return train


class Sweep:
    """A sweep in a folder, and what it has told."""

    def __init__(self, folder: Path, **changes: Any):
        space = {"train.x": {"low": 0.0, "high": 1.0}}
        settings = {"num_trials": 9, "max_epochs": 9, "grace_epochs": 1, "cpus_per_trial": 0.5}
        self.spec = SweepSpec.model_validate({"space": space, **settings, **changes})
        self.storage = Storage(folder)
        self.storage.make_folder("")
        self.events: list[dict[str, Any]] = []

    def run(self, train: TrainTrial, **options: Any) -> SweepResult:
        return run_sweep(
            **{
                "spec": self.spec,
                "objective": ACCURACY,
                "seed": 3,
                "storage": self.storage,
                "folder": FOLDER,
                "train_trial": train,
                "resources": ResourceSpec(num_cpus=2),
                "emit": lambda event, **fields: self.events.append({"event": event, **fields}),
                **options,
            }
        )

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def lines(self, name: str) -> list[str]:
        return self.storage.read_text(name).splitlines()


def test_trials_are_parked_and_go_on_from_their_checkpoints(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    result = sweep.run(make_trial())
    xs = [trial.config["train.x"] for trial in result.trials]
    assert len(xs) == 9

    schedule = Schedule(Rungs([1, 3, 9], 3, "max"), num_trials=9, num_slots=4)
    levels: Counter[int] = Counter()
    while not schedule.is_over:
        trial = next(schedule.wanted())
        epochs = [1, 3, 9][levels[trial]]
        schedule.finish(trial, levels[trial], float(xs[trial]) * (1 - 1 / (epochs + 1)))
        levels[trial] += 1
    assert [(each.trial, each.from_epoch, each.to_epoch) for each in result.promotions] == [
        (f"{each.trial:04d}", each.from_epoch, each.to_epoch) for each in schedule.promotions
    ]
    assert [each.rung for each in result.trials] == [
        [1, 3, 9][levels[trial] - 1] for trial in range(9)
    ]

    trained = sweep.lines("epochs.txt")
    assert len(set(trained)) == len(trained) == result.num_epochs  # none was trained twice
    assert result.num_full_epochs == 81
    assert any(int(call.split()[1]) in (1, 3) for call in sweep.lines("calls.txt"))
    assert result.winner == f"{max(range(9), key=lambda trial: float(xs[trial])):04d}"
    winner = result.trial(result.winner)
    assert (winner.status, winner.epochs, winner.best_epoch) == ("SUCCEEDED", 9, 9)
    assert winner.history[-1] == winner.best_value
    assert {trial.status for trial in result.trials} == {"SUCCEEDED", "STOPPED"}

    parked = {each["trial"] for each in sweep.told("trial_paused")}
    resumed = {each["trial"] for each in sweep.told("trial_resumed")}
    assert resumed
    assert resumed <= parked
    assert [each["trial"] for each in sweep.told("trial_promoted")] == [
        each.trial for each in result.promotions
    ]
    assert len(sweep.told("trial_started")) == len(sweep.told("trial_ended")) == 9
    assert sweep.told("trial_epoch")[0]["metrics"].keys() == {"loss"}

    stored = (tmp_path / FOLDER / "artifacts/sweep.json").read_text()
    assert SweepResult.model_validate_json(stored) == result
    num_told = len(sweep.events)
    assert sweep.run(make_trial()) == result
    assert len(sweep.events) == num_told


def test_a_trial_that_fails_does_not_fail_the_sweep(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_trials=6, max_epochs=4, grace_epochs=2)
    result = sweep.run(make_trial(fails=0.8, stops_early=0.4))
    for trial in result.trials:
        x = float(trial.config["train.x"])
        calls = [call for call in sweep.lines("calls.txt") if call.startswith(trial.id)]
        if x >= 0.8:
            assert (trial.status, trial.rung, trial.epochs) == ("FAILED", None, 1)
            assert trial.reason is not None
            assert trial.reason.endswith(f"RuntimeError: x is {x:.3f}")
            assert [int(call.split()[1]) for call in calls] == [0, 1]  # once more
        else:
            assert trial.status in ("SUCCEEDED", "STOPPED")
            assert trial.rung == 2 or x < 0.4
    statuses = Counter(trial.status for trial in result.trials)
    assert statuses["FAILED"] >= 1
    assert result.trial(result.winner).status != "FAILED"

    hopeless = Sweep(tmp_path / "hopeless", num_trials=1, grace_epochs=9)
    with pytest.raises(JobFailed, match=r"all 1 trials of the sweep failed; the first: .*x is 0"):
        hopeless.run(make_trial(fails=0))


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_rays_own_schedulers(tmp_path: Path, scheduler: str) -> None:
    sweep = Sweep(tmp_path, scheduler=scheduler, num_trials=5, max_epochs=3)
    result = sweep.run(make_trial())
    assert result.promotions == []
    epochs = [trial.epochs for trial in result.trials]
    if scheduler == "none":
        assert epochs == [3] * 5
    else:
        assert 3 in epochs
        assert min(epochs) == 1
        stopped = [trial for trial in result.trials if trial.epochs < 3]
        assert {trial.status for trial in stopped} == {"STOPPED"}


def test_a_sweep_that_was_asked_to_stop_goes_on_later(tmp_path: Path) -> None:
    slow = Sweep(tmp_path, num_trials=12)

    def train(config: dict[str, Any], context: TrialContext) -> None:
        import time

        time.sleep(0.3)
        inner(config, context)

    inner = make_trial()
    with pytest.raises(Stopped) as caught:
        slow.run(train, stop_requested=(tmp_path / "epochs.txt").exists)
    assert str(caught.value) == (
        "the sweep was asked to stop; the same command with the same --run-id goes on with it"
    )
    result = slow.run(inner)
    whole = Sweep(tmp_path / "whole", num_trials=12).run(inner)
    assert result == whole
    assert len(set(slow.lines("epochs.txt"))) == len(slow.lines("epochs.txt"))


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreflightError) as refused:
        Sweep(tmp_path, cpus_per_trial=4).run(make_trial())
    assert str(refused.value) == (
        "a trial asks for 4 CPU and Ray has 2; lower sweep.cpus_per_trial"
    )
    with pytest.raises(PreflightError, match=r"lower sweep\.gpus_per_trial"):
        Sweep(tmp_path, gpus_per_trial=1).run(make_trial())

    only = Sweep(tmp_path, num_trials=1, max_epochs=1)
    only.run(make_trial())
    with pytest.raises(SpecError) as caught:
        only.run(make_trial(), seed=4)
    assert str(caught.value) == (
        f"{FOLDER} holds a sweep with another sweep section, objective, seed or data; take another "
        "--run-id, or repeat the first options to go on with it"
    )
    state = tmp_path / FOLDER / "checkpoints/sweep.json"
    content = json.loads(state.read_text())
    content["promotions"] = [{"trial": 0, "from_epoch": 1, "to_epoch": 3, "value": 1.0}]
    state.write_text(json.dumps(content))
    os.unlink(tmp_path / FOLDER / "artifacts/sweep.json")
    with pytest.raises(JobFailed) as changed:
        only.run(make_trial())
    assert str(changed.value) == (
        f"the trials' records in {tmp_path}/{FOLDER} do not lead to the promotions noted there: "
        "they were changed; take another --run-id"
    )
