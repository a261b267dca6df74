"""The report of a run: one HTML file that needs nothing beside itself and adds no number."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ray_jobs.predictions import Predictions
from ray_jobs.reporting import figures, scores, tables
from ray_jobs.reporting.verdict import assess
from ray_jobs.result import JobResult

_HERE = Path(__file__).parent


def render_report(
    result: JobResult,
    *,
    predictions: Mapping[str, Predictions] | None,
    histories: Mapping[str, list[dict]] | None,
    spec_yaml: str | None = None,
) -> str:
    """The report of a run as one HTML page, for any status and however little the run has left.

    Args:
        predictions: of the splits "val" and "test"; None if the run failed before it had any.
        histories: member -> one dict an epoch, with epoch, train_loss, val_loss and the objective.
        spec_yaml: the spec as resolved.
    """
    test = (predictions or {}).get("test")
    threshold = result.ensemble.threshold if result.ensemble else None
    return fill(
        "report.html.j2",
        ["report.css"],
        **common_parts(result, spec_yaml),
        verdict=assess(result),
        leaderboard=tables.leaderboard(result),
        every_metric=scores.in_order(tables.metric_names(result)),
        ranking=figures.ranking_figures(result, test) if test else [],
        calibration=figures.calibration_figure(result, test) if test else None,
        threshold_figure=figures.threshold_figure(result, test) if test else None,
        confusion=tables.confusion(test, threshold) if test and threshold is not None else None,
        threshold=threshold,
        weights=tables.weights(result),
        candidates=tables.candidates(result),
        learning=figures.learning_figures(result, histories or {}),
    )


def common_parts(result: JobResult, spec_yaml: str | None) -> dict[str, Any]:
    """What the sections need that the report of every workload has, bar verdict and learning."""
    metric = result.objective.metric
    return {
        "result": result,
        "objective": metric,
        "objective_scores": {split: values.get(metric) for split, values in result.metrics.items()},
        "inputs": scores.inputs(result),
        "score_tables": tables.score_tables(result),
        "skipped": tables.skipped(result),
        "phases": tables.phases(result),
        "spec_yaml": spec_yaml,
    }


def fill(template: str, styles: Sequence[str], **values: Any) -> str:
    """A template of this folder with its values, its styles, and their digest for its policy."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "interval", "count", "duration", "moment", "metric_label"):
        environment.filters[name] = getattr(scores, name)
    css = "".join((_HERE / style).read_text(encoding="utf-8") for style in styles)
    return environment.get_template(template).render(
        percent=scores.percent,
        missing=scores.MISSING,
        css=Markup(css),  # noqa: S704 - our own files
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        **values,
    )
