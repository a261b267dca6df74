"""The state of a run, from its training jobs and from what its folder on S3 holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ray_jobs.run import Run
from ray_jobs.targets.base import JobState, stored_state
from ray_jobs.targets.sagemaker.description import TrainingJobState
from ray_jobs.targets.sagemaker.parts import Parts


def state_of_job(run: Run, job: TrainingJobState) -> JobState:
    """The state of a run that one training job carries out, or ends.

    The service comes first, for a result in the folder may be of an earlier attempt.

    Raises:
        RetryableError: the storage does not answer.
    """
    state = job.as_job_state()
    if job.is_malformed or not job.has_ended:
        return state
    stored = stored_state(run)
    if job.status == "SUCCEEDED" or job.is_gone:
        if stored is not None and stored.status == "SUCCEEDED":
            return replace(
                state,
                status="SUCCEEDED",
                reason=None,
                started_at=state.started_at or stored.started_at,
                ended_at=state.ended_at or stored.ended_at,
            )
        if job.is_gone:
            return state
        reason = stored.reason if stored is not None and stored.status == "FAILED" else None
        missing = (
            f"SageMaker has completed the job, but it left no result in "
            f"{run.storage.display(run.folder)}; look at what sagemaker.role_arn may do there"
        )
        return replace(state, status="FAILED", reason=reason or missing)
    reason = state.reason
    if (
        stored is not None
        and stored.status == state.status
        and stored.ended_at is not None
        and job.created_at is not None
        and stored.ended_at >= job.created_at
    ):
        reason = stored.reason
    return replace(state, reason=reason or "it was stopped")


def state_of_parts(
    run: Run, parts: Parts, jobs: Collection[TrainingJobState], members: Collection[str]
) -> JobState:
    """The state of a run whose parts are training jobs of their own.

    Raises:
        RetryableError: the storage does not answer.
    """
    if not jobs:
        return JobState("PENDING", "it has not been submitted", is_submitted=False)
    started_at = min((job.started_at for job in jobs if job.started_at), default=None)
    ended_at = max((job.ended_at for job in jobs if job.ended_at), default=None)
    known = parts.summary(members)
    if parts.unreadable is not None:
        return JobState("FAILED", parts.unreadable, started_at, details=known)
    if parts.combining is not None:
        state = state_of_job(run, parts.combining.state)
        state = replace(state, started_at=started_at, details=known | state.details)
        return state if state.has_ended else replace(state, status="RUNNING")
    if parts.live or parts.due:
        has_begun = started_at is not None or parts.done or parts.failed
        return JobState(
            "RUNNING" if has_begun else "PENDING",
            started_at=started_at,
            is_due=bool(parts.due),
            details=known,
        )
    return JobState("STOPPED", "it was stopped", started_at, ended_at, details=known)
