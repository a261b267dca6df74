"""How far a sweep has come: its records, rungs and schedule, kept in storage as they change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.result import Objective
from ray_jobs.storage import Storage
from ray_jobs.sweeping.records import RESULT, Records, SweepState, read_state, trial_id, write_state
from ray_jobs.sweeping.result import SweepResult, find_winner, promotion_result, trial_result
from ray_jobs.sweeping.rungs import Rungs, rungs_of
from ray_jobs.sweeping.schedule import Schedule
from ray_jobs.sweeping.search import Config, Observation, propose, propose_tpe
from ray_jobs.sweeping.spec import SweepSpec


class Progress:
    """A sweep under way.

    Args:
        storage, folder: the run's.
        emit: the journal.
        basis: digest of what else decides the values that trials report.
    """

    def __init__(
        self,
        spec: SweepSpec,
        objective: Objective,
        seed: int,
        storage: Storage,
        folder: str,
        emit: Callable[..., None],
        basis: str = "",
    ):
        self._digest = _digest(spec, objective, seed, basis)
        self.spec, self.objective, self.seed = spec, objective, seed
        self.storage, self.folder, self.emit = storage, folder, emit
        self.pauses = spec.scheduler == "pausing_asha"
        self.rung_epochs = rungs_of(spec)
        self.rungs = Rungs(self.rung_epochs, spec.reduction_factor, objective.mode)
        self.records = Records(storage, folder, spec.num_trials, self._propose)

    def prepare(self, num_fitting: int) -> None:
        """Take up what earlier attempts have left."""
        state = read_state(self.storage, self.folder)
        self._check_same(state)
        self.num_fitting = num_fitting
        self.num_slots = state.num_slots if state else num_fitting
        self._state = state or SweepState(digest=self._digest, num_slots=num_fitting)
        if state is None:
            write_state(self.storage, self.folder, self._state)
        if not self.pauses:
            if self.records.trials and self.spec.scheduler == "asha":
                message = (
                    "Ray's ASHAScheduler has forgotten its rungs; sweep.scheduler: pausing_asha "
                    "keeps them"
                )
                self.emit("warning", message=message)
            return
        self.schedule = Schedule(
            self.rungs,
            num_trials=self.spec.num_trials,
            num_slots=self.num_slots,
            on_start=lambda trial: None if self.runs_ahead else self._open(trial),
        )
        for trial in sorted(self.records.trials):
            self._replay(trial)
        known = self._state.promotions
        if self.schedule.promotions[: len(known)] != known:
            raise JobFailed(
                f"the trials' records in {self.storage.display(self.folder)} do not lead to the "
                "promotions noted there: they were changed; take another --run-id"
            )
        self.keep()

    @property
    def runs_ahead(self) -> bool:
        return self.spec.search == "random"

    @property
    def is_over(self) -> bool:
        if self.pauses:
            return self.schedule.is_over
        return not any(True for _ in self.unfinished())

    def unfinished(self) -> Iterator[int]:
        """Trials that have not ended, in order."""
        for trial in range(self.spec.num_trials):
            record = self.records.trials.get(trial)
            if record is None or record.status == "RUNNING":
                yield trial

    def is_parked(self, trial: int) -> bool:
        return self.pauses and not self.schedule.may_go_on(trial)

    def keep(self) -> None:
        """Write the rungs down if there is news, and tell of promotions."""
        if not self.pauses:
            return
        news = self.schedule.promotions[len(self._state.promotions) :]
        state = self._state.model_copy(
            update={
                "rungs": [rung.model_copy(deep=True) for rung in self.rungs.rungs],
                "promotions": list(self.schedule.promotions),
            }
        )
        if state == self._state:
            return
        write_state(self.storage, self.folder, state)
        self._state = state
        for each in news:
            self.emit(
                "trial_promoted",
                trial=trial_id(each.trial),
                epoch=each.from_epoch,
                to_epoch=each.to_epoch,
                value=each.value,
            )

    def earlier_result(self) -> SweepResult | None:
        """The result that an earlier attempt has come to, if one has.

        Raises:
            SpecError: the folder holds another sweep.
        """
        self._check_same(read_state(self.storage, self.folder))
        path = f"{self.folder}/{RESULT}"
        if not self.storage.exists(path):
            return None
        return SweepResult.model_validate_json(self.storage.read_bytes(path))

    def _check_same(self, state: SweepState | None) -> None:
        if state is not None and state.digest != self._digest:
            raise SpecError(
                f"{self.folder} holds a sweep with another sweep section, objective, seed or data; "
                "take another --run-id, or repeat the first options to go on with it"
            )

    def result(self) -> SweepResult:
        trials = dict(sorted(self.records.trials.items()))
        mode = self.objective.mode
        winner = find_winner(trials, mode)
        return SweepResult(
            scheduler=self.spec.scheduler,
            search=self.spec.search,
            seed=self.seed,
            objective=self.objective,
            num_slots=self.num_slots,
            rungs=self.rung_epochs,
            winner=trial_id(winner),
            trials=[
                trial_result(i, record, self.rung_epochs, mode) for i, record in trials.items()
            ],
            promotions=[promotion_result(each) for each in self._state.promotions],
            num_epochs=sum(len(record.values) for record in trials.values()),
            num_full_epochs=self.spec.num_trials * self.spec.max_epochs,
        )

    def _open(self, trial: int) -> None:
        self.records.open(trial)

    def _propose(self, trial: int) -> Config:
        space, mode = self.spec.space, self.objective.mode
        if self.spec.search == "random":
            return propose(space, seed=self.seed, trial=trial)
        return propose_tpe(space, self._observations(), seed=self.seed, trial=trial, mode=mode)

    def _observations(self) -> list[Observation]:
        """How far each trial has come: by the schedule's clock, where there is one."""
        last = self.spec.max_epochs
        if self.pauses:
            reached = {
                trial: (rung.epochs, value)
                for rung in self.rungs.rungs
                for trial, value in rung.values.items()
            }
        else:
            reached = {
                trial: (len(record.values), record.best(self.objective.mode))
                for trial, record in self.records.trials.items()
            }
        return [
            Observation(self.records.trials[trial].config, epochs, value, epochs == last)
            for trial, (epochs, value) in sorted(reached.items())
            if value is not None
        ]

    def _replay(self, trial: int) -> None:
        """Tell the schedule what is known of a trial; the order of trials does not matter."""
        record, mode = self.records.trials[trial], self.objective.mode
        for level, epochs in enumerate(self.rung_epochs):
            if len(record.values) >= epochs:
                self.schedule.finish(trial, level, record.best(mode, within=epochs))
        if record.status in ("SUCCEEDED", "FAILED"):
            self.schedule.end(trial, record.best(mode) if record.status == "SUCCEEDED" else None)


def _digest(spec: SweepSpec, objective: Objective, seed: int, basis: str) -> str:
    """sha256 of what decides the sweep's outcome."""
    elsewhere = {"cpus_per_trial", "gpus_per_trial"}
    parts = {
        "sweep": spec.model_dump(mode="json", exclude=elsewhere),
        "objective": objective.model_dump(mode="json"),
        "seed": seed,
        "basis": basis,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
