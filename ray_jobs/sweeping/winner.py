"""The winner of a run's sweep: whose values the run goes on with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ray_jobs.errors import JobFailed
from ray_jobs.result import SweepSummary
from ray_jobs.sweeping.records import RESULT, checkpoints_folder
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.search import Config

if TYPE_CHECKING:
    from ray_jobs.run import Run


def read_sweep(run: Run) -> SweepResult | None:
    """What the run's sweep came to, or None while there is no such result."""
    path = run.path(RESULT)
    if not run.storage.exists(path):
        return None
    return SweepResult.model_validate_json(run.storage.read_bytes(path))


def as_trial(run: Run, config: Config) -> Run:
    """The run with the hyperparameters of one trial, trained for as long as a trial may be."""
    spec = run.spec.replaced({**config, "train.epochs": run.spec.sweep.max_epochs})
    return replace(run, spec=spec)


def as_trained(run: Run) -> Run:
    """The run with the hyperparameters that it trains with: of a sweep, those of the winner.

    Raises:
        JobFailed: the sweep has not ended.
    """
    if not run.spec.sweeps:
        return run
    sweep = _ended(run)
    return as_trial(run, sweep.trial(sweep.winner).config)


def winner_checkpoints(run: Run) -> str | None:
    """The folder of the checkpoints that the winner goes on from; None without a sweep."""
    if not run.spec.sweeps:
        return None
    return checkpoints_folder(run.folder, int(_ended(run).winner))


def summarize(sweep: SweepResult) -> SweepSummary:
    """The sweep in short, as the job's result has it."""
    winner = sweep.trial(sweep.winner)
    assert winner.best_value is not None
    statuses = [trial.status for trial in sweep.trials]
    return SweepSummary(
        scheduler=sweep.scheduler,
        num_trials=len(sweep.trials),
        num_failed=statuses.count("FAILED"),
        num_stopped=statuses.count("STOPPED"),
        num_epochs=sweep.num_epochs,
        num_full_epochs=sweep.num_full_epochs,
        winner=sweep.winner,
        config=winner.config,
        value=winner.best_value,
    )


def _ended(run: Run) -> SweepResult:
    sweep = read_sweep(run)
    if sweep is None:
        raise JobFailed(f"the sweep of run {run.run_id!r} has not ended; run its sweep step first")
    return sweep
