"""The report of a decoder of G-code: its heads beside a baseline and a constant answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray_jobs.data.machine_logs.prepare import PUBLISHED_WARNING
from ray_jobs.reporting import (
    class_figures,
    class_tables,
    figures,
    gcode_figures,
    gcode_tables,
    scores,
    tables,
)
from ray_jobs.reporting.figures import Figure
from ray_jobs.reporting.report import common_parts, fill
from ray_jobs.reporting.verdict import Finding, Verdict, assess
from ray_jobs.result import JobResult

if TYPE_CHECKING:
    from ray_jobs.gcode_predictions import GcodePredictions
    from ray_jobs.workloads.gcode import GcodeSpec


def render_gcode_report(
    result: JobResult,
    spec: GcodeSpec,
    *,
    test: GcodePredictions | None,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """The report of a run as one HTML page, for any status and however little the run has left.

    Args:
        result: its `rivals` are a baseline and a constant answer, its `classes` the commands.
        spec: as resolved; its tolerances say which values are right.
        test: predictions of the test split, if the run came so far.
        history: one dict an epoch, with epoch, train_loss, val_loss, the metrics of each head and,
            as `train_...`, those of train.
    """
    is_published = spec.data.protocol == "published"
    matrix, names = gcode_figures.command_matrix(test) if test else (None, [])
    return fill(
        "gcode_report.html.j2",
        ["report.css", "class_report.css", "gcode_report.css"],
        **common_parts(result, spec.to_yaml()),
        verdict=_verdict(result, is_published),
        objective_in_text=scores.metric_in_text(result.objective.metric),
        is_published=is_published,
        heads=gcode_tables.heads(result),
        margin=gcode_tables.margin(result),
        rivals=gcode_tables.RIVALS,
        parameters=gcode_tables.parameters(result, spec.value_tolerance, test),
        values=gcode_figures.value_figures(test, spec.value_tolerance.parsed()) if test else [],
        class_table=class_tables.class_table(result),
        heatmap=None if matrix is None else class_figures.matrix_heatmap(matrix, names),
        max_drawn=class_figures.MAX_DRAWN,
        confusions=None if matrix is None else class_tables.commonest_of(matrix, names),
        learning=_learning(result, history),
        class_counts=class_tables.class_counts(result),
    )


def _verdict(result: JobResult, is_published: bool) -> Verdict:
    """That the split leaks comes before all else, whatever became of the run."""
    first = [Finding("warning", PUBLISHED_WARNING)] if is_published else []
    others = [text for text in tables.warnings(result) if text != PUBLISHED_WARNING]
    verdict = assess(
        result,
        others,
        first=[*first, *_against_baseline(result)],
        headline=_headline(result, is_published),
    )
    if not is_published:
        return verdict
    return replace(verdict, headline=f"The split leaks, by design. {verdict.headline}")


def _headline(result: JobResult, is_published: bool) -> str | None:
    test = result.metrics.get("test", {}).get(result.objective.metric)
    split = result.data.splits.get("test") if result.data else None
    if result.data is None or test is None or split is None:
        return None
    score = f"{scores.metric_in_text(result.objective.metric)} {scores.number(test.value)}"
    if is_published:
        windows = scores.plural(split.num_rows, "window")
        return f"The model reads G-code with {score} on {windows} of runs that train has as well."
    runs = scores.plural(split.num_groups, "run")
    unseen = "of operations " if result.data.grouped_by == "operation" else ""
    return f"The model reads G-code with {score} on {runs} {unseen}it has never seen."


def _against_baseline(result: JobResult) -> Iterator[Finding]:
    """A warning unless the model's composite accuracy is shown to be above the baseline's."""
    test = result.metrics.get("test", {})
    margin, own = test.get(gcode_tables.MARGIN), test.get("composite_acc")
    rival = result.rivals.get("baseline", {}).get("test", {}).get("composite_acc")
    if margin is None or own is None or rival is None or (margin.low or 0.0) > 0:
        return
    is_behind = margin.high is not None and margin.high < 0
    claim = "is behind the baseline" if is_behind else "is not shown to beat the baseline"
    if margin.low is None:
        reason = "there is no interval"
    else:
        reason = f"95 % interval {scores.interval(margin)}"
    yield Finding(
        "warning",
        f"The model {claim}: composite accuracy {scores.number(own.value)} on test against "
        f"{scores.number(rival.value)}, a margin of {scores.signed(margin.value)} ({reason}).",
    )


def _learning(result: JobResult, history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Loss, every head, and the learning rate by epoch."""
    drawn = figures.learning_figures(
        result,
        {member.name: list(history) for member in result.members},
        further={"learning_rate": "Learning rate"},
    )
    parts = []
    for figure in drawn:
        loss, _, *others = figure.charts  # the second is the objective, drawn among the heads
        charts = [loss, *gcode_figures.head_curves(result, history), *others]
        parts.append(replace(figure, charts=charts))
    return parts
