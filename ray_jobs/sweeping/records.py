"""What a sweep keeps of its trials while it runs: it goes on from here when it was killed.

checkpoints/trials/0007/trial.json    configuration, values by epoch, status; written every epoch
checkpoints/trials/0007/...           the trial's own checkpoints
checkpoints/sweep.json                settings, rungs and promotions; written when they change
artifacts/sweep.json                  the result; written last
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.errors import JobFailed
from ray_jobs.result import Status
from ray_jobs.storage import Storage
from ray_jobs.sweeping.rungs import Mode, Rung, Score
from ray_jobs.sweeping.schedule import Promotion
from ray_jobs.sweeping.search import Config

STATE, RESULT = "checkpoints/sweep.json", "artifacts/sweep.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T", bound=_Record)


class TrialRecord(_Record):
    """One trial so far. `values[0]` is of epoch 1; None stands for one that is not finite."""

    config: Config
    values: list[Score] = []
    status: Status = "RUNNING"  # also while it is parked
    reason: str | None = None

    def best_epoch(self, mode: Mode, within: int | None = None) -> int | None:
        """The first epoch of the best value, of the first `within` epochs."""
        values = self.values[:within]
        finite = [epoch for epoch, value in enumerate(values, start=1) if value is not None]
        sign = 1 if mode == "max" else -1
        return max(finite, key=lambda epoch: sign * (values[epoch - 1] or 0.0), default=None)

    def best(self, mode: Mode, within: int | None = None) -> float | None:
        epoch = self.best_epoch(mode, within)
        return None if epoch is None else self.values[epoch - 1]


class SweepState(_Record):
    """The settings that decide a sweep, its rungs and its promotions so far."""

    schema_version: Literal[1] = 1
    digest: str  # of the sweep's section, objective and seed
    num_slots: int
    rungs: list[Rung] = []
    promotions: list[Promotion] = []


def trial_id(trial: int) -> str:
    return f"{trial:04d}"


def trial_folder(folder: str, trial: int) -> str:
    return f"{folder}/checkpoints/trials/{trial_id(trial)}"


def checkpoints_folder(folder: str, trial: int) -> str:
    """A trial's own checkpoints."""
    return f"{trial_folder(folder, trial)}/checkpoints"


def read_trial(storage: Storage, folder: str, trial: int) -> TrialRecord | None:
    """A trial's record, or None while there is none.

    Raises:
        JobFailed: it is not one of this version.
    """
    return _read(storage, f"{trial_folder(folder, trial)}/trial.json", TrialRecord)


def read_state(storage: Storage, folder: str) -> SweepState | None:
    """The sweep's state, or None while there is none.

    Raises:
        JobFailed: it is not one of this version.
    """
    return _read(storage, f"{folder}/{STATE}", SweepState)


def write_state(storage: Storage, folder: str, state: SweepState) -> None:
    storage.write_text(f"{folder}/{STATE}", state.model_dump_json(indent=1))


class Records:
    """The records of all trials of a sweep, in memory and in storage. Only one process writes.

    Args:
        propose: the configuration of a trial that has none yet.
    """

    def __init__(
        self, storage: Storage, folder: str, num_trials: int, propose: Callable[[int], Config]
    ):
        self._storage, self._folder, self._propose = storage, folder, propose
        found = {trial: read_trial(storage, folder, trial) for trial in range(num_trials)}
        self.trials = {trial: record for trial, record in found.items() if record is not None}

    def open(self, trial: int) -> TrialRecord:
        """The trial's record; a new one with a new configuration if there is none."""
        if trial not in self.trials:
            self._write(trial, TrialRecord(config=self._propose(trial)))
        return self.trials[trial]

    def report(self, trial: int, epoch: int, value: float | None) -> None:
        record = self.trials[trial]
        if epoch <= len(record.values):  # said again by an attempt that did not know it was heard
            return
        assert epoch == len(record.values) + 1, (trial, epoch)
        self._update(trial, values=[*record.values, value])

    def end(self, trial: int, status: Status, reason: str | None = None) -> None:
        self._update(trial, status=status, reason=reason)

    def _update(self, trial: int, **changes: object) -> None:
        self._write(trial, self.trials[trial].model_copy(update=changes))

    def _write(self, trial: int, record: TrialRecord) -> None:
        path = f"{trial_folder(self._folder, trial)}/trial.json"
        self._storage.write_text(path, record.model_dump_json())
        self.trials[trial] = record


def _read(storage: Storage, path: str, kind: type[T]) -> T | None:
    if not storage.exists(path):
        return None
    try:
        return kind.model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "document"
        raise JobFailed(
            f"{storage.display(path)} is not of this version: {place}: {fault['msg']}; take "
            "another --run-id"
        ) from None
