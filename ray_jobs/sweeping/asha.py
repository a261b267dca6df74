"""ASHA that pauses and promotes, as a scheduler of Ray Tune. Only a running sweep imports this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from ray_jobs.sweeping.schedule import Schedule

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

TRIAL, EPOCH, BEST, ENDED = "trial", "epoch", "best", "ended"  # of a config; of a result


class PausingASHA(TrialScheduler):
    """Asynchronous successive halving that parks a trial at a rung and goes on with it when it is
    among the best 1/eta there (Li et al. 2018, algorithm 2).

    Ray's own ASHAScheduler only stops trials. Which trial is promoted when is the schedule's to
    say; here its wishes become decisions of Tune. A trial that is not running in this process yet
    is not in Tune's list of trials either: the search algorithm adds it when `next_new` names it,
    for Tune starts by itself whatever is on its list. Every result has `epoch`, `best` (so far) and
    `ended`, every config `trial`, the trial's number.

    Args:
        schedule: of the whole sweep, with all that earlier attempts have found.
        num_slots: trials that fit side by side now.
        runs_ahead: whether a free slot may take a trial that the schedule has not come to.
    """

    def __init__(self, schedule: Schedule, *, num_slots: int, runs_ahead: bool):
        super().__init__()
        self._schedule = schedule
        self._num_slots = num_slots
        self._runs_ahead = runs_ahead
        self._trials: dict[int, Trial] = {}
        self._levels = {rung.epochs: i for i, rung in enumerate(schedule.rungs.rungs)}

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        # Tune gives a reused actor to a trial before it has made the trial's folder.
        trial.init_local_path()
        self._trials[trial.config[TRIAL]] = trial

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        number, epoch, best = trial.config[TRIAL], result[EPOCH], finite(result[BEST])
        if result[ENDED]:
            self._schedule.end(number, best)
            return TrialScheduler.CONTINUE  # it is about to return
        level = self._levels.get(epoch)
        if level is None:
            return TrialScheduler.CONTINUE
        self._schedule.finish(number, level, best)
        if level == self._schedule.rungs.top:
            return TrialScheduler.STOP
        if self._schedule.may_go_on(number):
            return TrialScheduler.CONTINUE
        return TrialScheduler.PAUSE

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        if trial.status == Trial.RUNNING and trial.should_recover():  # Tune starts it again
            return
        self._schedule.end(trial.config[TRIAL], None)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Its last result has said it."""

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """It was parked for good."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        if self._schedule.is_over:
            for trial in [t for t in self._trials.values() if t.status == Trial.PAUSED]:
                tune_controller.stop_trial(trial)
            return None
        number = self._next()
        if number is None or number not in self._trials:
            return None
        trial = self._trials[number]
        assert trial.status == Trial.PAUSED, (number, trial.status)
        return trial

    def next_new(self) -> int | None:
        """The trial to run next, if it has yet to be added to Tune's list."""
        number = self._next()
        return number if number not in self._trials else None

    def debug_string(self) -> str:
        rungs = self._schedule.rungs.rungs
        return "; ".join(
            f"{len(rung.values)} trials at epoch {rung.epochs}, {len(rung.promoted)} promoted"
            for rung in rungs
        )

    def _next(self) -> int | None:
        """The trial to give a free slot: one that the schedule waits for, else one run ahead."""
        if sum(self._is_live(number) for number in self._trials) >= self._num_slots:
            return None
        for number in self._schedule.wanted():
            if not self._is_live(number):
                return number
        if self._runs_ahead:
            for number in self._schedule.ahead():
                if not self._is_live(number):
                    return number
        return None

    def _is_live(self, number: int) -> bool:
        trial = self._trials.get(number)
        return trial is not None and trial.status in (Trial.PENDING, Trial.RUNNING)


def finite(value: float) -> float | None:
    """None for what is not a number."""
    return value if abs(value) < float("inf") else None
