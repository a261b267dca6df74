"""The sweep job: trials of the run's network with other hyperparameters, and a winner.

`python -m ray_jobs.sweep --spec F` carries out the whole job: the sweep, the winner's training to
its end, the one look at the test split, and the registration.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import partial

from ray_jobs import ray_runtime
from ray_jobs.events import Journal, read_events
from ray_jobs.fit import train_trial
from ray_jobs.prepare import read_data
from ray_jobs.run import Run
from ray_jobs.stopping import sigterm_asks_to_stop, wait_or_stop
from ray_jobs.sweeping.records import checkpoints_folder
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.sweep import run_sweep

PAGE = "sweep.html"
DESCRIPTION = "Sweep what a job description says, train and test the winner; prints the result."


def sweep(run: Run) -> SweepResult:
    """Carry out the run's sweep, or go on with it; then only the winner's checkpoints are kept.

    Raises:
        PreflightError: no trial fits on the machine or cluster.
        JobFailed: every trial failed.
        RetryableError: Ray or the storage failed.
        Stopped: the run was asked to stop.
    """
    journal = run.journal("sweep")
    with journal.phase():
        result = _run(run, journal)
        for trial in result.trials:
            if trial.id != result.winner:
                run.storage.delete_folder(checkpoints_folder(run.folder, int(trial.id)))
        write_page(run, result)
        journal("sweep_ended", winner=result.winner, num_epochs=result.num_epochs)
    return result


def write_page(run: Run, result: SweepResult) -> None:
    """Write sweep.html: the trials in pictures."""
    from ray_jobs.reporting.sweep_report import render_sweep_report

    page = render_sweep_report(
        result,
        workload=run.spec.workload,
        run_id=run.run_id,
        space=run.spec.sweep.space,
        events=read_events(run.storage, run.folder),
    )
    run.storage.write_text(run.path(PAGE), page)


def _run(run: Run, journal: Journal) -> SweepResult:
    parts = (run.spec.digest(*run.spec.TRAINED_BY), read_data(run).digest)
    work = partial(
        run_sweep,
        spec=run.spec.sweep,
        objective=run.spec.objective,
        seed=run.spec.seed,
        storage=run.storage,
        folder=run.folder,
        train_trial=partial(train_trial, run.uri),
        resources=run.spec.resources,
        emit=journal,
        stop_requested=run.is_stop_requested,
        basis=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
    )
    # The session is opened here, in the main thread, where it can undo what Ray does to SIGTERM.
    with ray_runtime.session(run.spec.resources), sigterm_asks_to_stop(run):
        return wait_or_stop(run, work)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.sweep`; the result is the last thing on stdout. Returns the exit code."""
    from ray_jobs.train import main_of

    return main_of("sweep", DESCRIPTION, arguments)


if __name__ == "__main__":
    sys.exit(main())
