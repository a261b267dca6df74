"""The report of a classifier of many classes, and the files beside it: matrix, scores, mistakes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.multiclass import class_scores, confusion_matrix, multiclass_metrics, worst_classes
from ray_jobs.reporting import class_figures, class_tables, figures, mistakes, tables
from ray_jobs.reporting.report import common_parts, fill
from ray_jobs.reporting.verdict import assess
from ray_jobs.result import JobResult
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image


def render_class_report(
    result: JobResult,
    *,
    predictions: Mapping[str, ClassPredictions],
    histories: Mapping[str, list[dict]],
    spec_yaml: str | None = None,
) -> str:
    """The report of a run as one HTML page, for any status and however little the run has left.

    Args:
        result: its `classes` hold the scores of each class.
        predictions: of the splits "val" and "test", as far as there are any.
        histories: member -> one dict an epoch, with epoch, train_loss, val_loss and the objective;
            learning_rate and num_batches are shown where they stand.
        spec_yaml: the spec as resolved.
    """
    test = predictions.get("test")  # false, too, if it has no rows
    return fill(
        "class_report.html.j2",
        ["report.css", "class_report.css"],
        **common_parts(result, spec_yaml),
        verdict=assess(result, warnings=tables.warnings(result)),
        class_table=class_tables.class_table(result),
        heatmap=class_figures.confusion_heatmap(test) if test else None,
        max_drawn=class_figures.MAX_DRAWN,
        confusions=class_tables.commonest_confusions(test) if test else None,
        calibration=class_figures.top_label_figure(result, test) if test else None,
        learning=figures.learning_figures(
            result, histories, further={"learning_rate": "Learning rate"}
        ),
        class_counts=class_tables.class_counts(result),
        left_out=class_tables.left_out(result, histories),
        healthy_share=class_tables.HEALTHY_SHARE,
        bad_share=class_tables.BAD_SHARE,
    )


def write_class_artifacts(
    storage: Storage,
    folder: str,
    predictions: Mapping[str, ClassPredictions],
    *,
    open_picture: Callable[[int], Image],
) -> None:
    """Write what a reader of the report may want to go on with.

    Of every split: `classification_report.json`. Of test: `confusion_matrix.npy` (int64 [C, C],
    rows true, columns named), `confusion_matrix.png`, and `misclassified.html`.

    Args:
        folder: relative to the storage's root.
        open_picture: the picture of a row id; an OSError or ValueError of it is shown in its place.
    """
    summary = {split: _summary(part) for split, part in predictions.items() if part}
    storage.write_text(
        f"{folder}/classification_report.json",
        json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    test = predictions.get("test")
    if not test:
        return
    matrix = confusion_matrix(test.y, test.p)
    stream = io.BytesIO()
    np.save(stream, matrix, allow_pickle=False)
    storage.write_bytes(f"{folder}/confusion_matrix.npy", stream.getvalue())
    storage.write_bytes(
        f"{folder}/confusion_matrix.png", class_figures.confusion_png(matrix, test.classes)
    )
    storage.write_text(
        f"{folder}/misclassified.html", mistakes.render_mistakes(test, open_picture=open_picture)
    )


def _summary(part: ClassPredictions) -> dict[str, Any]:
    """The scores of one split; null where the rows do not define one."""
    scores = class_scores(part.y, part.p, part.classes)
    metrics = multiclass_metrics(part.y, part.p)
    return {
        "num_rows": len(part),
        "accuracy": metrics["accuracy"],
        "macro_f1": metrics["macro_f1"],
        "worst_classes": [entry.name for entry in worst_classes(scores)],
        "classes": {entry.name: entry.model_dump(exclude={"name"}) for entry in scores},
    }
