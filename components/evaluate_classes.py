"""Read the test split of a classifier of many classes, once."""

from kfp import dsl

from components.step import step


@step
def evaluate_classes(
    run: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """Score the network on test; returns the run's URI."""
    from ray_jobs.class_predictions import ClassPredictions
    from ray_jobs.evaluate import evaluate
    from ray_jobs.multiclass import confusion_matrix
    from ray_jobs.run import Run
    from ray_jobs.workloads.network import TEST

    this = Run.at(run)
    result = evaluate(this)
    for split, values in result.metrics.items():
        for key, metric in values.items():
            metrics.log_metric(f"{split} {key}", metric.value)
    test = ClassPredictions.read(this.storage, this.path(TEST))
    confusion.log_confusion_matrix(list(test.classes), confusion_matrix(test.y, test.p).tolist())
    return run
