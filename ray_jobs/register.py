"""The registration job: tell MLflow what was trained, write the report, and finish the result."""

from __future__ import annotations

from datetime import UTC, datetime

from ray_jobs.errors import JobFailed
from ray_jobs.evaluate import read_evaluation, render
from ray_jobs.events import read_events, step_seconds
from ray_jobs.result import JobResult
from ray_jobs.run import Run


def register(run: Run) -> JobResult:
    """Log the run and its model to MLflow, unless `tracking.enabled` is false; then write
    report.html and, last, the SUCCEEDED result.

    Raises:
        JobFailed: the run has not been evaluated.
        RetryableError: MLflow cannot be reached.
    """
    journal = run.journal("register")
    with journal.phase():
        result = read_evaluation(run)
        if result is None:
            raise JobFailed(
                f"run {run.run_id!r} has not been evaluated; run its evaluate step first"
            )
        if run.spec.tracking.enabled:
            from ray_jobs.tracking.runs import log_report, log_run

            result = result.model_copy(update={"model": log_run(run, result)})
        end = {
            "status": "SUCCEEDED",
            "ended_at": datetime.now(UTC),
            "seconds": step_seconds(read_events(run.storage, run.folder)),
        }
        finished = result.model_copy(update=end)
        render(run, finished)
        if finished.model is not None:
            log_report(run, finished.model)
        run.write_result(finished)
    return finished
