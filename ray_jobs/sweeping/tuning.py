"""The sweep's parts inside Ray Tune besides the scheduler. Only a running sweep imports this."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from ray_jobs.errors import RetryableError
from ray_jobs.sweeping.asha import BEST, ENDED, EPOCH, TRIAL, finite
from ray_jobs.sweeping.records import Records, trial_id
from ray_jobs.sweeping.rungs import Mode

_OUTAGE = re.compile(r"ray_jobs\.(errors\.RetryableError|storage\.StorageUnavailable): ")
EPOCH_EVENT_INTERVAL_S = 1.0  # of one trial; rungs are always told
_STOP_CHECK_INTERVAL_S = 1.0


class TrialQueue(Searcher):
    """Adds trials to Tune's list as they are to run.

    Args:
        records: get the trial's configuration before it starts.
        next_trial: the number of the trial to add, None for none now.
        is_over: no trial will ever be added again.
    """

    def __init__(
        self,
        records: Records,
        next_trial: Callable[[], int | None],
        is_over: Callable[[], bool],
    ):
        super().__init__()
        self._records, self._next_trial, self._is_over = records, next_trial, is_over

    def suggest(self, trial_id: str) -> Any:
        if self._is_over():
            return Searcher.FINISHED
        trial = self._next_trial()
        if trial is None:
            return None
        self._records.open(trial)
        return {TRIAL: trial}

    def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None:
        """The records know."""

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; what a sweep goes on from are its records."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep goes on from its records")


class Recorder(Callback):
    """Keeps what trials report, before they go on, and tells the journal.

    Args:
        max_epochs: of a trial trained in full.
        rung_epochs: whose values are told at once.
        is_parked: whether a trial that has just reached a rung is left there.
        on_change: called when the rungs may have changed.
    """

    def __init__(
        self,
        records: Records,
        emit: Callable[..., None],
        *,
        mode: Mode,
        max_epochs: int,
        rung_epochs: tuple[int, ...],
        is_parked: Callable[[int], bool],
        on_change: Callable[[], None],
    ):
        self._records, self._emit, self._mode = records, emit, mode
        self._max_epochs, self._rung_epochs = max_epochs, rung_epochs
        self._is_parked, self._on_change = is_parked, on_change
        self._told_at: dict[int, float] = {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        number = trial.config[TRIAL]
        record = self._records.trials[number]
        epoch = len(record.values)
        self._emit(
            "trial_resumed" if epoch else "trial_started",
            trial=trial_id(number),
            epoch=epoch,
            config=record.config,
        )

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        number, epoch = trial.config[TRIAL], result[EPOCH]
        if result[ENDED]:
            self._end(number)
            return
        value, best = finite(result["value"]), finite(result[BEST])
        self._records.report(number, epoch, value)
        is_rung = epoch in self._rung_epochs
        if is_rung or time.monotonic() - self._told_at.get(number, 0) > EPOCH_EVENT_INTERVAL_S:
            self._told_at[number] = time.monotonic()
            self._emit(
                "trial_epoch",
                trial=trial_id(number),
                epoch=epoch,
                value=value,
                best=best,
                metrics=result["metrics"],
            )
        if epoch == self._max_epochs:
            self._end(number)
        elif is_rung:
            if self._is_parked(number):
                self._emit("trial_paused", trial=trial_id(number), epoch=epoch, value=best)
            self._on_change()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        number = trial.config[TRIAL]
        if self._records.trials[number].status == "RUNNING":
            self._tell_end(number, "STOPPED")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = _reason(trial)
        if _OUTAGE.match(reason):  # no fault of the trial: the sweep breaks off, to go on later
            raise RetryableError(reason.partition(": ")[2])
        self._tell_end(trial.config[TRIAL], "FAILED", reason)
        self._on_change()

    def _end(self, number: int) -> None:
        if self._records.trials[number].values:
            self._tell_end(number, "SUCCEEDED")
        else:
            self._tell_end(number, "FAILED", "it ended without a report")
        self._on_change()

    def _tell_end(self, number: int, status: Any, reason: str | None = None) -> None:
        self._records.end(number, status, reason)
        record = self._records.trials[number]
        self._emit(
            "trial_ended",
            trial=trial_id(number),
            status=status,
            reason=reason,
            epoch=len(record.values),
            value=record.best(self._mode),
            config=record.config,
        )


class StopOnRequest(Stopper):
    """Ends the sweep when it is asked to stop; its trials go on from their checkpoints later."""

    def __init__(self, is_requested: Callable[[], bool]):
        self._is_requested = is_requested
        self._checked_at = 0.0
        self.is_stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self.is_stopped and time.monotonic() - self._checked_at > _STOP_CHECK_INTERVAL_S:
            self._checked_at = time.monotonic()
            self.is_stopped = self._is_requested()
        return self.is_stopped

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it down; a sweep goes on from its records


def _reason(trial: Trial) -> str:
    """The last line of what Tune wrote down of a trial's end."""
    assert trial.error_file is not None
    lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines()]
    return next(line for line in reversed(lines) if line)[:300]
