"""What a trial knows of its sweep, in the process that trains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.storage import Storage
from ray_jobs.sweeping.records import checkpoints_folder, read_trial, trial_id
from ray_jobs.sweeping.rungs import Mode
from ray_jobs.sweeping.search import Config


@dataclass
class TrialContext:
    """Given to the function that trains a trial, each time that it is called.

    The function is called anew after a pause, a failure or a kill, and goes on from the newest
    checkpoint that it finds in `folder`. It writes the checkpoint of an epoch first and reports the
    epoch then: a trial that is parked is left inside `report`, which does not return. Where its
    checkpoint is ahead of `last_epoch`, it reports the epochs between from the history that the
    checkpoint holds.
    """

    trial_id: str
    storage: Storage
    folder: str  # for its checkpoints, relative to the storage root
    max_epochs: int
    rung_epochs: tuple[int, ...]  # where it may be parked: there it needs a checkpoint
    num_cpus: float
    mode: Mode
    send: Callable[[dict[str, Any]], None]
    values: list[float | None] = field(default_factory=list)  # reported so far; [0] is of epoch 1

    @property
    def last_epoch(self) -> int:
        """The last epoch that was reported, 0 of a trial that begins."""
        return len(self.values)

    def report(self, epoch: int, value: float, metrics: Mapping[str, float] | None = None) -> None:
        """Say what an epoch came to. Epochs begin at 1 and come in order; one that was reported
        before, by an earlier call of the function, is passed over.

        Raises:
            ValueError: an epoch is left out.
        """
        if epoch <= self.last_epoch:
            return
        if epoch != self.last_epoch + 1:
            raise ValueError(
                f"trial {self.trial_id} reports epoch {epoch} after {self.last_epoch}: report "
                "every epoch from TrialContext.last_epoch + 1 on, out of the checkpoint's history "
                "where the checkpoint is ahead"
            )
        self.values.append(value if math.isfinite(value) else None)
        self._send(ended=False, metrics=dict(metrics or {}))

    def end(self) -> None:
        """The function has returned: there is nothing left to train, as after early stopping."""
        self._send(ended=True, metrics={})

    def _send(self, **fields: Any) -> None:
        finite = [value for value in self.values if value is not None]
        best = max if self.mode == "max" else min
        value = self.values[-1] if self.values else None
        self.send(
            {
                "epoch": self.last_epoch,
                "value": math.nan if value is None else value,
                "best": best(finite, default=math.nan),
                **fields,
            }
        )


TrainTrial = Callable[[Config, TrialContext], None]


@dataclass(frozen=True)
class TrialSetting:
    """What all trials of a sweep have in common."""

    storage_uri: str
    folder: str  # of the run
    max_epochs: int
    rung_epochs: tuple[int, ...]
    num_cpus: float
    mode: Mode


def train_trial_here(setting: TrialSetting, trial: int, train_trial: TrainTrial) -> None:
    """Train a trial in this process, one of Ray Tune's, until it ends or is parked."""
    from ray import tune

    storage = Storage(setting.storage_uri)
    record = read_trial(storage, setting.folder, trial)
    assert record is not None, trial  # written before the trial was started
    context = TrialContext(
        trial_id=trial_id(trial),
        storage=storage,
        folder=checkpoints_folder(setting.folder, trial),
        max_epochs=setting.max_epochs,
        rung_epochs=setting.rung_epochs,
        num_cpus=setting.num_cpus,
        mode=setting.mode,
        send=tune.report,
        values=list(record.values),
    )
    train_trial(dict(record.config), context)
    context.end()
