"""The report's figures: which lines, marks and captions a result and its predictions make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from markupsafe import Markup

from ray_jobs.predictions import Predictions
from ray_jobs.reporting import charts, curves
from ray_jobs.reporting.charts import Axis, Dot, Line, Mark
from ray_jobs.reporting.curves import Floats, Labels, Ranking
from ray_jobs.reporting.scores import (
    MISSING,
    count,
    interval,
    metric_label,
    number,
    percent,
    plural,
)
from ray_jobs.result import JobResult, MemberResult, MetricValue

ENSEMBLE = "s-ensemble"
_NUM_COLOURS = 6
_CHANCE = "chance"


@dataclass(frozen=True)
class LegendEntry:
    name: str
    swatch: Markup
    value: str = ""


@dataclass(frozen=True)
class Figure:
    title: str
    charts: list[Markup]
    legend: list[LegendEntry]
    caption: str


def colours(names: Iterable[str]) -> dict[str, str]:
    """A CSS class for each member; past the palette's end, the same colours dashed."""
    return {
        name: f"s-{index % _NUM_COLOURS}" + (" dashed" if index >= _NUM_COLOURS else "")
        for index, name in enumerate(names)
    }


def ranking_figures(result: JobResult, test: Predictions) -> list[Figure]:
    """ROC and precision-recall curves of all models; none if test has one class only."""
    ensemble = curves.rank(test.y, test.ensemble)
    if ensemble is None:
        return []
    css = colours(member.name for member in result.members)
    models = [(ENSEMBLE, "Ensemble", result.metrics, ensemble)]
    for member in result.members:
        p = test.members.get(member.name)
        ranking = None if p is None else curves.rank(test.y, p)
        if ranking:
            models.append((css[member.name], member.name, member.metrics, ranking))
    drawn = [(style, ranking) for style, _, _, ranking in reversed(models)]  # ensemble on top
    roc_legend, precision_legend = [], []
    for style, name, metrics, ranking in models:
        auc = metrics.get("test", {}).get("auc")
        swatch = charts.swatch(style)
        roc_legend.append(LegendEntry(name, swatch, number(auc.value if auc else None)))
        precision_legend.append(LegendEntry(name, swatch, number(ranking.average_precision)))

    threshold = result.ensemble.threshold if result.ensemble else None
    hints = _hints(ensemble, threshold)
    operating = next((hint.text for hint in hints if hint.css == "operating"), "")
    ring = f" The ring is the operating point. {operating}." if operating else ""
    base_rate = float(np.mean(test.y == 1))
    roc = charts.line_chart(
        [
            Line(style, np.r_[0.0, r.false_positive_rate], np.r_[0.0, r.recall])
            for style, r in drawn
        ],
        label=f"ROC curves on the test split. {operating}",
        x_axis=Axis.unit("False positive rate"),
        y_axis=Axis.unit("Recall (true positive rate)"),
        references=[Line(_CHANCE, np.array([0.0, 1.0]), np.array([0.0, 1.0]))],
        dots=_dots(hints, ensemble.false_positive_rate, ensemble.recall),
    )
    precision = charts.line_chart(
        [Line(style, r.recall, r.precision) for style, r in drawn],
        label=f"Precision-recall curves on the test split. {operating}",
        x_axis=Axis.unit("Recall"),
        y_axis=Axis.unit("Precision"),
        references=[Line(_CHANCE, np.array([0.0, 1.0]), np.full(2, base_rate))],
        dots=_dots(hints, ensemble.recall, ensemble.precision),
    )
    return [
        Figure("ROC", [roc], roc_legend, f"AUC on test. Dotted: chance.{ring}"),
        Figure(
            "Precision and recall",
            [precision],
            precision_legend,
            f"Average precision on test. Dotted: chance, as {number(base_rate)} of the rows are "
            "positive.",
        ),
    ]


@dataclass(frozen=True)
class _Hint:
    """A point of the ensemble's curves to mark, or to hover over."""

    css: str
    index: int
    text: str


def _hints(ranking: Ranking, operating: float | None) -> list[_Hint]:
    points = [("hover", float(threshold)) for threshold in np.linspace(0.05, 0.95, 19)]
    points += [("operating", operating)] if operating is not None else []
    hints = []
    for css, threshold in points:
        index = ranking.last_above(threshold)
        if index is not None:
            text = (
                f"Threshold {number(threshold)}: recall {number(ranking.recall[index])}, precision "
                f"{number(ranking.precision[index])}, false positive rate "
                f"{number(ranking.false_positive_rate[index])}"
            )
            hints.append(_Hint(css, index, text))
    return hints


def _dots(hints: Sequence[_Hint], x: Floats, y: Floats) -> list[Dot]:
    return [Dot(hint.css, float(x[hint.index]), float(y[hint.index]), hint.text) for hint in hints]


def calibration_figure(result: JobResult, test: Predictions) -> Figure:
    """Reliability diagram of the ensemble on test, over the histogram of its probabilities."""
    method = result.ensemble.calibration if result.ensemble else MISSING
    return reliability_figure(
        result, test.y, test.ensemble, model="the ensemble", hit="positive", method=method
    )


def reliability_figure(
    result: JobResult,
    y: Labels,
    p: Floats,
    *,
    model: str,
    hit: str,
    probability: str = "Predicted probability",
    frequency: str = "Share of positives",
    method: str | None = None,
) -> Figure:
    """How often `y` [N] is 1 by `p` [N] on test; `hit` says in a word what is then the case."""
    bins = curves.reliability(y, p)
    edges = np.linspace(0, 1, len(bins.num_rows) + 1)
    titles = [
        f"Probability {low:.3f}–{high:.3f}: {plural(int(num), 'row')}, "
        f"{count(int(positive))} {hit} ({percent(positive, num)})"
        for low, high, num, positive in zip(
            edges[:-1], edges[1:], bins.num_rows, bins.num_positive, strict=True
        )
    ]
    filled = np.flatnonzero(bins.num_rows)
    ece = result.metrics.get("test", {}).get("ece")
    diagram = charts.line_chart(
        [Line(ENSEMBLE, bins.mean_probability[filled], bins.frequency[filled])],
        label=f"Reliability diagram of {model} on the test split, {len(filled)} filled bins",
        x_axis=Axis.unit(f"{probability} (mean of the bin)"),
        y_axis=Axis.unit(frequency),
        references=[Line(_CHANCE, np.array([0.0, 1.0]), np.array([0.0, 1.0]))],
        dots=[
            Dot(
                f"point {ENSEMBLE}",
                float(bins.mean_probability[index]),
                float(bins.frequency[index]),
                titles[index],
            )
            for index in filled
        ],
    )
    counts = charts.histogram(
        bins.num_rows.tolist(),
        titles,
        label=f"Histogram of {model}'s probabilities on the test split",
        x_axis=Axis.unit(probability),
    )
    caption = (
        f"{len(titles)} bins of equal width. On the dotted line, probabilities mean what they say. "
        f"ECE {number(ece.value if ece else None)} ({interval(ece)})"
        f"{f'; calibration: {method}' if method else ''}."
    )
    return Figure("Calibration", [diagram, counts], [], caption)


def threshold_figure(result: JobResult, test: Predictions) -> Figure | None:
    """Precision, recall and F1 of the ensemble on test, by where the threshold is set."""
    ranking = curves.rank(test.y, test.ensemble)
    if ranking is None:
        return None
    styles = {"F1": ENSEMBLE, "Precision": "s-ink", "Recall": "s-ink dotted"}
    values = {"F1": ranking.f1, "Precision": ranking.precision, "Recall": ranking.recall}
    threshold = result.ensemble.threshold if result.ensemble else None
    index = ranking.last_above(threshold) if threshold is not None else None
    dots = []
    if threshold is not None and index is not None:
        f1 = float(ranking.f1[index])
        dots.append(
            Dot("operating", threshold, f1, f"Threshold {number(threshold)}: F1 {number(f1)}")
        )
    chart = charts.line_chart(
        [
            Line(styles[name], ranking.thresholds, values[name])
            for name in ("Precision", "Recall", "F1")
        ],
        label="Precision, recall and F1 of the ensemble on the test split by threshold",
        x_axis=Axis.unit("Threshold"),
        y_axis=Axis.unit("Score"),
        dots=dots,
        height=250,
    )
    legend = [LegendEntry(name, charts.swatch(style)) for name, style in styles.items()]
    caption = "What another threshold would do on test. The ring is the one chosen on validation."
    return Figure("Precision and recall by threshold", [chart], legend, caption)


def learning_figures(
    result: JobResult,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    further: Mapping[str, str] = MappingProxyType({}),
) -> list[Figure]:
    """Loss and objective by epoch, for each member that has a history.

    `further` names what else to draw where the history has it: key -> name of its axis.
    """
    css = colours(member.name for member in result.members)
    metric = result.objective.metric
    figures = []
    for member in result.members:
        history = histories.get(member.name) or []
        epoch = _column(history, "epoch")
        if not np.isfinite(epoch).any():
            continue
        style = css[member.name]
        train_loss = _column(history, "train_loss")
        losses = [
            Line(f"{style} dotted", epoch, train_loss),
            Line(style, epoch, _column(history, "val_loss")),
        ]
        legend = [LegendEntry("validation", charts.swatch(style))]
        if np.isfinite(train_loss).any():
            legend.append(LegendEntry("train", charts.swatch(f"{style} dotted")))
        scores = [Line(style, epoch, _column(history, metric))]
        others = dict(_scaled(name, _column(history, key)) for key, name in further.items())
        figures.append(
            Figure(
                member.name,
                [
                    _by_epoch(member, losses, "Loss", f"Loss of {member.name} by epoch"),
                    _by_epoch(
                        member,
                        scores,
                        f"{metric_label(metric)} on validation",
                        f"{metric_label(metric)} of {member.name} on validation by epoch",
                    ),
                    *(
                        _by_epoch(
                            member,
                            [Line(style, epoch, values)],
                            name,
                            f"{name} of {member.name} by epoch",
                        )
                        for name, values in others.items()
                        if np.isfinite(values).any()
                    ),
                ],
                legend,
                f"Best epoch {count(member.best_epoch)}, of {count(member.num_epochs)}.",
            )
        )
    return figures


def _by_epoch(member: MemberResult, lines: Sequence[Line], name: str, label: str) -> Markup:
    shown = lines[-1]
    dots = []
    for x, y in zip(shown.x, shown.y, strict=True):
        if x == member.best_epoch and np.isfinite(y):
            text = f"Epoch {member.best_epoch}, the best: {number(float(y))}"
            dots.append(Dot(f"point {shown.css}", float(x), float(y), text))
    return charts.line_chart(
        lines,
        label=label,
        x_axis=Axis.whole("Epoch", lines[0].x),
        y_axis=Axis.around(name, np.concatenate([line.y for line in lines])),
        dots=dots,
        height=230,
    )


def _scaled(name: str, values: Floats) -> tuple[str, Floats]:
    """Values in a unit that leaves their axis short labels; the name tells the unit."""
    largest = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0))
    if not 0 < largest < 0.01:
        return name, values
    exponent = math.floor(math.log10(largest))
    return f"{name} (in 1e−{-exponent})", values / 10.0**exponent


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Floats:
    """One value an epoch, NaN where it is missing or not a number. Shape [E]."""
    values = [entry.get(key) for entry in history]
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)


def score_mark(value: MetricValue, css: str, name: str) -> Mark:
    text = f"{name}: {number(value.value)} ({interval(value)})"
    return Mark(css, value.value, value.low, value.high, text)


def axis_of_scores(scores: Iterable[MetricValue], others: Iterable[float] = ()) -> Axis:
    """An axis that holds all the values, their intervals, and the others."""
    values = [
        edge
        for score in scores
        for edge in (score.low, score.value, score.high)
        if edge is not None
    ]
    return Axis.around("", [*values, *others])
