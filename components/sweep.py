"""Sweep the hyperparameters of a run."""

from kfp import dsl

from components.step import step


@step
def sweep(run: str, metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]) -> str:
    """Find the winner, or go on with a sweep that was cut off; returns the run's URI."""
    from ray_jobs import steps
    from ray_jobs.run import Run
    from ray_jobs.sweep import PAGE

    this = Run.at(run)
    result = steps.sweep(this)
    winner = result.trial(result.winner)
    metrics.log_metric(f"val {result.objective.metric} of the winner", winner.best_value)
    metrics.log_metric("epochs spent", result.num_epochs)
    metrics.log_metric("epochs of all trials in full", result.num_full_epochs)
    for key, value in winner.config.items():
        metrics.metadata[key] = value
    with open(page.path, "wb") as file:
        file.write(this.storage.read_bytes(this.path(PAGE)))
    return run
