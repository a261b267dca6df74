"""Read the test split, once."""

from kfp import dsl

from components.step import step


@step
def evaluate(
    run: str,
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """Score the ensemble on test; returns the run's URI."""
    from ray_jobs.ensemble import TEST
    from ray_jobs.evaluate import evaluate
    from ray_jobs.predictions import Predictions
    from ray_jobs.reporting.curves import confusion, rank
    from ray_jobs.run import Run

    this = Run.at(run)
    result = evaluate(this)
    for split, values in result.metrics.items():
        for key, metric in values.items():
            metrics.log_metric(f"{split} {key}", metric.value)
    test = Predictions.read(this.storage, this.path(TEST))
    ranking = rank(test.y, test.ensemble)
    if ranking is not None:
        every = slice(None, None, max(1, len(ranking.thresholds) // 200))  # the UI draws few points
        points = (ranking.false_positive_rate, ranking.recall, ranking.thresholds)
        curves.log_roc_curve(*(values[every].tolist() for values in points))
    assert result.ensemble, "an evaluated run has an ensemble"
    assert result.data, "an evaluated run has data"
    matrix = confusion(test.y, test.ensemble, result.ensemble.threshold)
    labels = [f"no {result.data.label}", result.data.label]
    if matrix is not None:
        curves.log_confusion_matrix(labels, [list(row) for row in matrix])
    return run
