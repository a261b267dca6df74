"""SweepResult: what a sweep came to, `artifacts/sweep.json` of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import JobFailed
from ray_jobs.result import Objective, Status
from ray_jobs.sweeping.records import TrialRecord, trial_id
from ray_jobs.sweeping.rungs import Mode, Score
from ray_jobs.sweeping.schedule import Promotion
from ray_jobs.sweeping.search import Config

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialResult(_Record):
    """One trial. SUCCEEDED: trained to its end; STOPPED: parked at a rung for good."""

    id: str
    config: Config
    status: Status
    reason: str | None = None  # why it FAILED
    rung: int | None = None  # epochs of the highest rung reached
    epochs: int
    history: list[Score]  # value of each epoch; None: not finite
    best_value: Finite | None = None
    best_epoch: int | None = None


class PromotionResult(_Record):
    """A trial that went on from a rung, with its best value there."""

    trial: str
    from_epoch: int
    to_epoch: int
    value: Finite


class SweepResult(_Record):
    """All trials of a sweep and its winner: the best value of any trial that did not fail; of
    equal ones the lower trial."""

    schema_version: Literal[1] = 1
    scheduler: str
    search: str
    seed: int
    objective: Objective
    num_slots: int  # trials side by side, in the order of the promotions
    rungs: list[int]  # epochs
    winner: str
    trials: list[TrialResult]
    promotions: list[PromotionResult]
    num_epochs: int  # spent, but for those that a kill made a trial repeat
    num_full_epochs: int  # that training every trial in full would have taken

    def trial(self, trial_id: str) -> TrialResult:
        (found,) = (trial for trial in self.trials if trial.id == trial_id)
        return found


def trial_result(trial: int, record: TrialRecord, rungs: list[int], mode: Mode) -> TrialResult:
    """One trial once the sweep is over: what was under way is parked for good."""
    epochs = len(record.values)
    reached = [level for level in rungs if level <= epochs]
    return TrialResult(
        id=trial_id(trial),
        config=record.config,
        status="STOPPED" if record.status == "RUNNING" else record.status,
        reason=record.reason,
        rung=max(reached, default=None),
        epochs=epochs,
        history=record.values,
        best_value=record.best(mode),
        best_epoch=record.best_epoch(mode),
    )


def promotion_result(promotion: Promotion) -> PromotionResult:
    return PromotionResult(
        trial=trial_id(promotion.trial),
        from_epoch=promotion.from_epoch,
        to_epoch=promotion.to_epoch,
        value=promotion.value,
    )


def find_winner(trials: Mapping[int, TrialRecord], mode: Mode) -> int:
    """The trial with the best value.

    Raises:
        JobFailed: every trial failed.
    """
    sign = 1 if mode == "max" else -1
    best = {
        trial: sign * value
        for trial, record in sorted(trials.items())
        if record.status != "FAILED" and (value := record.best(mode)) is not None
    }
    if not best:
        reason = next((r.reason for r in trials.values() if r.reason), "no value was finite")
        raise JobFailed(f"all {len(trials)} trials of the sweep failed; the first: {reason}")
    return max(best, key=lambda trial: best[trial])
