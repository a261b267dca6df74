"""Combine the members."""

from kfp import dsl

from components.step import step


@step
def ensemble(run: str, statuses: list, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Choose weights, calibration and threshold on validation; returns the run's URI.

    Args:
        statuses: of the members; they make this step wait for all of them.
    """
    from ray_jobs.ensemble import build
    from ray_jobs.run import Run

    chosen = build(Run.at(run)).to_result()
    metrics.log_metric("strategy", chosen.strategy)
    metrics.log_metric("threshold", chosen.threshold)
    for name, weight in chosen.weights.items():
        metrics.log_metric(f"weight {name}", weight)
    return run
