"""The figures of a report of decoded G-code: values against the true ones, and curves of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.gcode_metrics import HEAD_METRICS, Tolerance
from ray_jobs.reporting import charts, figures, scores
from ray_jobs.reporting.charts import Axis, Dot, Line
from ray_jobs.reporting.class_figures import Counts
from ray_jobs.reporting.figures import Figure
from ray_jobs.result import JobResult

if TYPE_CHECKING:
    from ray_jobs.gcode_predictions import GcodePredictions

MAX_POINTS = 500  # of a parameter; more hide each other, and weigh on the page
UNSEEN = "not in train"  # the row of commands that no model can name
_CURVE = "s-0"  # the colour that `learning_figures` gives the one member


def command_matrix(test: GcodePredictions) -> tuple[Counts, list[str]]:
    """Confusion matrix [C, C] of commands, rows true, columns named, and what they are called.

    Windows of commands that train lacks are a row of their own, after the others.
    """
    names = [*test.commands, UNSEEN]
    true = np.where(test.true.command < 0, len(test.commands), test.true.command)
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (true, test.predicted.command), 1)
    return matrix, names


def value_figures(test: GcodePredictions, tolerance: Tolerance) -> list[Figure]:
    """Predicted against true values of each parameter that a line of test sets."""
    allowed = tolerance.allowed(test.true.param_value)
    drawn = []
    for p, name in enumerate(PARAMETERS):
        is_set = np.flatnonzero(test.true.param_type[:, p])
        if len(is_set):
            chosen = is_set[_evenly(len(is_set))]
            chart = _scatter(
                name,
                test.true.param_value[chosen, p],
                test.predicted.param_value[chosen, p],
                allowed[chosen, p],
            )
            shown = "" if len(chosen) == len(is_set) else f"{len(chosen):,} of "
            caption = f"{shown}{scores.plural(len(is_set), 'value')}."
            drawn.append(Figure(name, [chart], [], caption))
    return drawn


def _evenly(num: int) -> NDArray[np.int64]:
    """At most MAX_POINTS of `num` places, from the first to the last."""
    return np.unique(np.linspace(0, num - 1, min(num, MAX_POINTS)).astype(np.int64))


def _scatter(
    name: str, true: figures.Floats, predicted: figures.Floats, allowed: figures.Floats
) -> Markup:
    both = np.r_[true, predicted]
    is_near = np.abs(predicted - true) <= allowed
    order = np.argsort(true)
    x_axis, y_axis = Axis.around(f"True {name}", both), Axis.around(f"Predicted {name}", both)
    ends = np.array([y_axis.low, y_axis.high])
    return charts.line_chart(
        [],
        label=f"Predicted by true {name} on the test split, {len(true)} values",
        x_axis=x_axis,
        y_axis=y_axis,
        references=[
            Line("chance", ends, ends),
            *(
                Line("edge", true[order], (true + side * allowed)[order].clip(*ends))
                for side in (-1, 1)
            ),
        ],
        dots=[
            Dot(
                "value near" if near else "value",
                float(x),
                float(y),
                f"True {_plain(x)}, predicted {_plain(y)}",
            )
            for x, y, near in zip(true, predicted, is_near, strict=True)
        ],
    )


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def head_curves(result: JobResult, history: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Each head and their product by epoch: validation, and train dotted where it is known."""
    best = next((member.best_epoch for member in result.members), None)
    epoch = _column(history, "epoch")
    drawn = []
    for name in HEAD_METRICS:
        val, train = _column(history, name), _column(history, f"train_{name}")
        if not np.isfinite(epoch + val).any():
            continue
        label = scores.metric_label(name)
        dots = [
            Dot(f"point {_CURVE}", best, float(y), f"Epoch {best}, the best: {scores.number(y)}")
            for x, y in zip(epoch, val, strict=True)
            if best is not None and x == best and np.isfinite(y)
        ]
        drawn.append(
            charts.line_chart(
                [Line(f"{_CURVE} dotted", epoch, train), Line(_CURVE, epoch, val)],
                label=f"{label} by epoch",
                x_axis=Axis.whole("Epoch", epoch),
                y_axis=Axis.around(label, np.r_[train, val]),
                dots=dots,
                height=230,
            )
        )
    return drawn


def _column(history: Sequence[Mapping[str, Any]], key: str) -> figures.Floats:
    """One value an epoch, NaN where it is missing or not a number. Shape [E]."""
    values = [entry.get(key) for entry in history]
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)
