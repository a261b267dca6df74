"""Train one member of the ensemble."""

from kfp import dsl

from components.step import step


@step
def train_member(member: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Fit one member as a Ray task; returns its status. A failed member does not fail the step.

    Args:
        member: URI of the member's folder in its run.
    """
    from ray_jobs import steps
    from ray_jobs.run import Run

    run, _, name = member.rsplit("/", 2)
    result = steps.train_member(Run.at(run), name)
    metrics.log_metric("status", result.status)
    for key, metric in result.metrics.get("val", {}).items():
        metrics.log_metric(f"val {key}", metric.value)
    return result.status
