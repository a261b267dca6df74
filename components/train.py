"""Train the network of a run."""

from kfp import dsl

from components.step import step


@step
def train(run: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Train, or go on from the last checkpoint; returns the run's URI."""
    from ray_jobs import steps
    from ray_jobs.run import Run

    result = steps.train(Run.at(run))
    metrics.log_metric("best epoch", result.best_epoch)
    metrics.log_metric("epochs", result.num_epochs)
    metrics.log_metric("skipped batches", result.num_skipped_batches)
    return run
