"""The report of a run: one HTML file that needs nothing beside itself and adds no number."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

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
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "interval", "count", "duration", "moment", "metric_label"):
        environment.filters[name] = getattr(scores, name)
    test = (predictions or {}).get("test")
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    threshold = result.ensemble.threshold if result.ensemble else None
    return environment.get_template("report.html.j2").render(
        result=result,
        verdict=assess(result),
        objective=result.objective.metric,
        objective_scores={
            split: metrics.get(result.objective.metric) for split, metrics in result.metrics.items()
        },
        score_tables=tables.score_tables(result),
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
        skipped=tables.skipped(result),
        phases=tables.phases(result),
        spec_yaml=spec_yaml,
        percent=scores.percent,
        missing=scores.MISSING,
        css=Markup(css),  # noqa: S704 - our own file
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )
