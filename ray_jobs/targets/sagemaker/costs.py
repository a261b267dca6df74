"""What the training jobs of a run cost, and how long each may train for its budget."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from ray_jobs.errors import PreflightError
from ray_jobs.targets.sagemaker import pricing
from ray_jobs.targets.sagemaker.description import TrainingJobState
from ray_jobs.targets.sagemaker.spec import SageMakerSpec


def costs(
    jobs: Iterable[TrainingJobState], settings: SageMakerSpec, region: str, *, has_ended: bool
) -> dict[str, str]:
    """What all jobs of a run have cost; or so far, at most, while one is not billed yet."""
    billed_s, elapsed_s = 0, 0.0
    for job in jobs:
        if job.has_ended and job.billable_s is not None:
            billed_s += job.billable_s
        elif job.started_at is not None:
            end = job.ended_at or datetime.now(UTC)
            elapsed_s += max(0.0, (end - job.started_at).total_seconds())
    if has_ended and billed_s and not elapsed_s:
        return {"cost": str(pricing.cost_of_billed(settings, region, billed_s))}
    if not billed_s + elapsed_s:
        return {}
    without_pool = settings.model_copy(update={"keep_alive_s": 0})
    cost = pricing.cost_of_run(without_pool, region, billed_s + elapsed_s)
    return {"cost so far": str(replace(cost, is_upper_bound=True))}


def totals(jobs: Collection[TrainingJobState]) -> dict[str, str]:
    """The times of all jobs of a run together, where it has several and the service tells them."""
    times = [
        (job.training_s, job.billable_s)
        for job in jobs
        if job.training_s is not None and job.billable_s is not None
    ]
    if len(jobs) < 2 or not times:
        return {}
    trained_s, billed_s = (sum(column) for column in zip(*times, strict=True))
    found = {"trained": f"{trained_s} s", "billable": f"{billed_s} s"}
    if trained_s and any(job.is_spot for job in jobs):
        found["spot savings"] = f"{100 * max(0.0, 1 - billed_s / trained_s):.0f} %"
    return found


def max_run_s_of_part(
    settings: SageMakerSpec, region: str, num_jobs: int, earlier: Iterable[TrainingJobState]
) -> int:
    """The stopping condition of a job, in seconds.

    Args:
        num_jobs: that share `max_cost_usd`, equally.
        earlier: attempts at the same part, which have used some of its share.

    Raises:
        PreflightError: the share pays for no training, or the price is not known.
    """
    budget = settings.max_cost_usd
    if budget is None:
        return settings.max_run_s
    spent_s = sum(job.billable_s or 0 for job in earlier)
    spent = pricing.cost_of_billed(settings, region, spent_s).usd or 0.0
    share = budget / num_jobs - spent
    if share == budget:
        return pricing.max_run_s(settings, region)
    of = f"of sagemaker.max_cost_usd={budget:g} this job has {budget / num_jobs:.2f} USD"
    of += f", and {spent:.2f} are billed" if spent else ""
    if share <= 0:
        raise PreflightError(f"{of}; raise it to go on")
    try:
        return pricing.max_run_s(settings.model_copy(update={"max_cost_usd": share}), region)
    except PreflightError as error:
        raise PreflightError(f"{of}: {error}") from None
