"""Epochs that a sweep spends until it has the score of the full-budget winner.

    python -m tests.bench.asha_efficiency [--seeds 50] [--workers 4]

Two objectives: a formula for learning curves, and the curves of real trainings on the G-code
simulator (asha_curves.csv, made by tests.bench.asha_curves), drawn in another order for each seed.

Random search trains 40 trials (24 of the simulator's) in full; the best value that any of them ever
has is the score to reach, to within 0.001. Every method draws the same trials in the same order and
goes on to draw (800 at most) until it reaches that score: random search one full training after
another, Ray's ASHAScheduler and ours by the same rungs, on the best value so far. Epochs of all
workers count up to the moment at which the score is reached, and so does the clock; an epoch of a
network 256 wide takes one unit of it, and others in proportion (real ones: seconds as measured). No
method that brings every trial to the first rung can get below grace / max epochs of random
search's.

"less Ray's" is how many epochs more than Ray's were needed, on the same seeds, with the standard
error of that mean. The columns "of n" are of a sweep of just those trials, to its end. "busy" is
the share of the workers' time spent in training: it shows what ours pays for promotions that do not
hang on timing (see ray_jobs/sweeping/schedule.py).

The schedulers are driven through Ray Tune's TrialScheduler interface by a small discrete-event
simulation of the workers: no cluster, no training. The formula is

    value(epoch) = ceiling - (ceiling - 0.1) / (1 + epoch / s) ** 1.5 + noise

over the hyperparameters of the G-code sweep. The ceiling falls off around an optimum and rises with
the width; s, the curves' scale times 0.7 to 4, rises with width and batch size and falls with the
learning rate: wide, slow networks end on top and stand behind early on, so that the curves cross.
"rank correlation" says how much of the final order the first rung shows. The noise (standard
deviation 0.003) is drawn per trial and epoch from the seed.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from scipy.stats import spearmanr

from ray_jobs.sweeping.asha import PausingASHA
from ray_jobs.sweeping.rungs import Rungs, rung_epochs
from ray_jobs.sweeping.schedule import Schedule
from ray_jobs.sweeping.search import Config, propose
from ray_jobs.sweeping.spec import Distribution
from tests.bench import asha_curves


@dataclass(frozen=True)
class Setting:
    scale: float | None  # epochs, of the formula's curves; None: real ones
    grace: int
    max_epochs: int = 200
    eta: int = 3
    num_trials: int = 40


RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "curves", "max epochs", "scale", "grace", "eta", "rank correlation", "method", "seeds",
    "reached", "epochs, median", "epochs, mean", "of random search's", "less Ray's",
    "standard error", "clock, median",
    "epochs of n, median", "clock of n, median", "busy of n, median", "command",
)  # fmt: skip
SETTINGS = tuple(  # the shipped one first
    Setting(scale, grace)
    for scale, graces in ((1.0, (50, 25, 10)), (0.3, (50, 10, 5)))
    for grace in graces
) + tuple(Setting(None, grace, 36, 3, 24) for grace in (9, 4, 2))
MAX_TRIALS, MARGIN = 800, 0.001
SPACE = {
    "model.hidden_dim": Distribution(values=[192, 256, 320, 384]),
    "train.batch_size": Distribution(values=[16, 24, 32]),
    "train.learning_rate": Distribution(low=4e-5, high=8e-5, log=True),
    "train.weight_decay": Distribution(low=0.03, high=0.08),
    "model.dropout": Distribution(low=0.0, high=0.4),
}


@dataclass
class SimulatedTrial:
    """What the schedulers see of a trial, and its curve."""

    config: dict[str, int]
    trial_id: str
    values: np.ndarray
    seconds: float  # of an epoch
    status: str = Trial.PENDING
    epoch: int = 0
    best: float = -math.inf

    def init_local_path(self) -> None:
        """It has no files."""


@dataclass
class Controller:
    """What PausingASHA asks of Tune."""

    stopped: list[SimulatedTrial] = field(default_factory=list)

    def stop_trial(self, trial: SimulatedTrial) -> None:
        trial.status = Trial.TERMINATED
        self.stopped.append(trial)


@dataclass
class Outcome:
    epochs: int
    clock: float
    busy: float  # share of the workers' time
    is_reached: bool


def curve(config: Config, seed: int, number: int, setting: Setting) -> np.ndarray:
    """Values of epochs 1 to max_epochs, shape [max_epochs]."""
    width, batch = float(config["model.hidden_dim"]), float(config["train.batch_size"])
    rate, decay = float(config["train.learning_rate"]), float(config["train.weight_decay"])
    off = math.log2(rate / 5.5e-5)
    ceiling = (
        0.90
        + 0.04 * (width - 192) / 192
        - 0.10 * off**2
        - 20.0 * (decay - 0.05) ** 2
        - 0.5 * (float(config["model.dropout"]) - 0.15) ** 2
        - 0.01 * math.log2(batch / 16)
    )
    scale = setting.scale * (width / 192) * (batch / 16) ** 0.5 / 2**off
    epochs = np.arange(1, setting.max_epochs + 1)
    noise = np.random.default_rng([seed, number, 1]).normal(0, 0.003, setting.max_epochs)
    return ceiling - (ceiling - 0.1) / (1 + epochs / scale) ** 1.5 + noise


class Stream:
    """The trials of one seed, the same for every method."""

    def __init__(self, seed: int, setting: Setting):
        self.seed, self.setting = seed, setting
        every = range(setting.num_trials)
        self.target = max(self.make(number).values.max() for number in every) - MARGIN

    def make(self, number: int) -> SimulatedTrial:
        if self.setting.scale is None:
            values, seconds = real_curve(self.seed, number, self.setting.max_epochs)
        else:
            config = propose(SPACE, seed=self.seed, trial=number)
            values = curve(config, self.seed, number, self.setting)
            seconds = float(config["model.hidden_dim"]) / 256
        return SimulatedTrial({"trial": number}, f"{number:04d}", values, seconds)


def real_curve(seed: int, number: int, max_epochs: int) -> tuple[np.ndarray, float]:
    """Values [max_epochs] and seconds an epoch of a training; all are drawn once before any is
    drawn again."""
    pool = asha_curves.read_rows()
    again, place = divmod(number, len(pool))
    row = pool[int(np.random.default_rng([seed, again]).permutation(len(pool))[place])]
    values = np.array([float(value) for value in row["values"].split()])
    assert len(values) == max_epochs, (len(values), max_epochs)
    return values, float(row["seconds of an epoch"])


def simulate(
    stream: Stream,
    scheduler: TrialScheduler,
    next_new: Callable[[], int | None],
    num_workers: int,
    *,
    until_target: bool,
) -> Outcome:
    """Workers that take what the scheduler gives them, epoch by epoch, to the target or the end."""
    controller: Any = Controller()
    under_way: list[tuple[float, int, SimulatedTrial]] = []
    now, worked, num_epochs = 0.0, 0.0, 0
    while True:
        while len(under_way) < num_workers:
            number = next_new()
            trial: Any
            if number is not None:
                trial = stream.make(number)
                scheduler.on_trial_add(controller, trial)
            else:
                trial = scheduler.choose_trial_to_run(controller)
                if trial is None:
                    break
            trial.status = Trial.RUNNING
            heapq.heappush(under_way, (now + trial.seconds, trial.config["trial"], trial))
        if not under_way:
            return Outcome(num_epochs, now, worked / (num_workers * now), not until_target)
        now, _, trial = heapq.heappop(under_way)
        num_epochs += 1
        worked += trial.seconds
        trial.epoch += 1
        trial.best = max(trial.best, float(trial.values[trial.epoch - 1]))
        if until_target and trial.best >= stream.target:
            return Outcome(num_epochs, now, worked / (num_workers * now), True)
        result = {"epoch": trial.epoch, "best": trial.best, "ended": False}
        decision = scheduler.on_trial_result(controller, trial, result)
        if trial.epoch == stream.setting.max_epochs:
            decision = TrialScheduler.STOP
        if decision == TrialScheduler.CONTINUE:
            heapq.heappush(under_way, (now + trial.seconds, trial.config["trial"], trial))
        elif decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
        else:
            trial.status = Trial.TERMINATED
            scheduler.on_trial_complete(controller, trial, result)


def counter(num_trials: int) -> Callable[[], int | None]:
    numbers = iter(range(num_trials))
    return lambda: next(numbers, None)


def random_search(
    setting: Setting, num_trials: int, num_workers: int
) -> tuple[TrialScheduler, Callable[[], int | None]]:
    class Never(FIFOScheduler):
        def choose_trial_to_run(self, tune_controller: object) -> None:
            return None

    return Never(), counter(num_trials)


def rays_asha(
    setting: Setting, num_trials: int, num_workers: int
) -> tuple[TrialScheduler, Callable[[], int | None]]:

    class Listed(ASHAScheduler):
        def choose_trial_to_run(self, tune_controller: object) -> None:
            return None

    scheduler = Listed(
        "epoch",
        "best",
        "max",
        max_t=setting.max_epochs,
        grace_period=setting.grace,
        reduction_factor=setting.eta,
    )
    return scheduler, counter(num_trials)


def pausing_asha(
    setting: Setting, num_trials: int, num_workers: int
) -> tuple[TrialScheduler, Callable[[], int | None]]:
    rungs = Rungs(rung_epochs(setting.grace, setting.max_epochs, setting.eta), setting.eta, "max")
    schedule = Schedule(rungs, num_trials=num_trials, num_slots=num_workers)
    scheduler = PausingASHA(schedule, num_slots=num_workers, runs_ahead=True)
    return scheduler, scheduler.next_new


RAYS = "Ray's ASHAScheduler"
METHODS = {
    "random search": random_search,
    RAYS: rays_asha,
    "pausing ASHA": pausing_asha,
}


def rank_correlation(setting: Setting, seeds: int) -> float:
    """Spearman's, of the best values at the first rung and at the end; mean over the seeds."""
    found = []
    for seed in range(seeds):
        stream = Stream(seed, setting)
        values = [stream.make(number).values for number in range(setting.num_trials)]
        first, last = (
            [each[:epochs].max() for each in values]
            for epochs in (setting.grace, setting.max_epochs)
        )
        found.append(spearmanr(first, last).statistic)
    return round(float(np.mean(found)), 2)


def measure(
    setting: Setting, seeds: int, num_workers: int, command: str
) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    epochs: dict[str, list[int]] = {}
    correlation = rank_correlation(setting, seeds)
    for name, make in METHODS.items():
        reached, whole = [], []
        for seed in range(seeds):
            stream = Stream(seed, setting)
            reached.append(
                simulate(
                    stream, *make(setting, MAX_TRIALS, num_workers), num_workers, until_target=True
                )
            )
            whole.append(
                simulate(
                    stream,
                    *make(setting, setting.num_trials, num_workers),
                    num_workers,
                    until_target=False,
                )
            )
        epochs[name] = [each.epochs for each in reached]
        mean, reference = (statistics.mean(epochs[key]) for key in (name, "random search"))
        less = [a - b for a, b in zip(epochs[name], epochs.get(RAYS, epochs[name]), strict=True)]
        row = (
            "simulator" if setting.scale is None else "formula", setting.max_epochs,
            setting.scale, setting.grace, setting.eta, correlation, name, seeds,
            sum(each.is_reached for each in reached),
            statistics.median(each.epochs for each in reached), round(mean),
            round(mean / reference, 3), round(statistics.mean(less)),
            round(statistics.stdev(less) / math.sqrt(seeds)),
            round(statistics.median(each.clock for each in reached)),
            statistics.median(each.epochs for each in whole),
            round(statistics.median(each.clock for each in whole)),
            round(statistics.median(each.busy for each in whole), 3), command,
        )  # fmt: skip
        print(*(f"{value!s:>19.19}" for value in row[:-1]), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    command = (
        f"python -m tests.bench.asha_efficiency --seeds {options.seeds} --workers {options.workers}"
    )
    print(*(f"{name:>19.19}" for name in COLUMNS[:-1]))
    rows = [
        row
        for setting in SETTINGS
        for row in measure(setting, options.seeds, options.workers, command)
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
