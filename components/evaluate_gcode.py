"""Read the test split of a decoder of G-code, once."""

from kfp import dsl

from components.step import step


@step
def evaluate_gcode(
    run: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """Score the network and its rivals on test; returns the run's URI."""
    import numpy as np

    from ray_jobs.evaluate import evaluate
    from ray_jobs.gcode_predictions import GcodePredictions
    from ray_jobs.run import Run
    from ray_jobs.workloads.network import TEST

    this = Run.at(run)
    result = evaluate(this)
    for split, values in result.metrics.items():
        for key, metric in values.items():
            metrics.log_metric(f"{split} {key}", metric.value)
    for rival, splits in result.rivals.items():
        for key, metric in splits["test"].items():
            if key == result.objective.metric:
                metrics.log_metric(f"test {key} of the {rival}", metric.value)
    test = GcodePredictions.read(this.storage, this.path(TEST))
    names = [*test.commands, "not in train"]
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (test.true.command, test.predicted.command), 1)  # -1, not in train, is last
    confusion.log_confusion_matrix(names, matrix.tolist())
    return run
