"""The tables that a report of decoded G-code has: heads and parameters, each beside its rivals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.gcode_metrics import HEAD_METRICS
from ray_jobs.reporting import charts, figures, scores, tables
from ray_jobs.reporting.charts import Mark
from ray_jobs.result import JobResult, Metrics, MetricValue

if TYPE_CHECKING:
    from ray_jobs.gcode_predictions import GcodePredictions
    from ray_jobs.models.gcode_spec import ValueTolerance

MARGIN = "composite_acc_margin"
RIVALS = {"baseline": "s-0", "constant": "s-plain"}  # -> their colour
UNITS = {name: "in/min" if name == "F" else "in" for name in PARAMETERS}
_HEADS_WIDTH, _PARAMETERS_WIDTH = 220, 120  # of their whiskers, in px


@dataclass(frozen=True)
class HeadRow:
    """A metric of the model on both splits, and of its rivals on test."""

    label: str
    meaning: str
    is_objective: bool
    test: MetricValue | None
    val: MetricValue | None
    rivals: dict[str, MetricValue | None]
    chart: Markup

    @property
    def gap(self) -> float | None:
        return self.test.value - self.val.value if self.test and self.val else None


@dataclass(frozen=True)
class HeadTable:
    axis: Markup
    rows: list[HeadRow]


def heads(result: JobResult) -> HeadTable | None:
    """The accuracy of each head and their product; None if nothing was scored."""
    owners = [*result.metrics.values(), *(_on_test(result, name) for name in RIVALS)]
    names = [name for name in HEAD_METRICS if any(name in metrics for metrics in owners)]
    return _head_table(result, names, owners) if names else None


def margin(result: JobResult) -> HeadTable | None:
    """What the model has over the baseline, on the same windows; None if that is not known."""
    is_known = any(MARGIN in metrics for metrics in result.metrics.values())
    if not is_known:
        return None
    return _head_table(result, [MARGIN], result.metrics.values(), landmarks={"No margin": 0.0})


def _head_table(
    result: JobResult,
    names: Iterable[str],
    owners: Iterable[Metrics],
    landmarks: Mapping[str, float] | None = None,
) -> HeadTable:
    names, landmarks = list(names), landmarks or {}
    values = [metrics[name] for metrics in owners for name in names if name in metrics]
    axis = figures.axis_of_scores(values, landmarks.values())
    val, test = result.metrics.get("val", {}), result.metrics.get("test", {})
    rows = []
    for name in names:
        label = scores.metric_label(name)
        marks = tables.split_marks(label, result.metrics, name, figures.ENSEMBLE)
        rows.append(
            HeadRow(
                label=label,
                meaning=scores.metric_meaning(name),
                is_objective=name == result.objective.metric,
                test=test.get(name),
                val=val.get(name),
                rivals={rival: _on_test(result, rival).get(name) for rival in RIVALS},
                chart=charts.whiskers(
                    [*marks, *_rival_marks(label, result, name)],
                    axis,
                    width=_HEADS_WIDTH,
                    landmarks=landmarks,
                ),
            )
        )
    return HeadTable(charts.whisker_axis(axis, width=_HEADS_WIDTH), rows)


@dataclass(frozen=True)
class ParameterRow:
    """One parameter on test: how near the values are that the model and its rivals give it."""

    name: str
    unit: str
    tolerance: str
    num_values: int | None
    near: dict[str, MetricValue | None]  # model, baseline, constant -> share within tolerance
    error: dict[str, MetricValue | None]  # likewise the mean absolute error, in `unit`
    chart: Markup  # of `near`


@dataclass(frozen=True)
class ParameterTable:
    axis: Markup
    rows: list[ParameterRow]


def parameters(
    result: JobResult, tolerance: ValueTolerance, test: GcodePredictions | None
) -> ParameterTable | None:
    """Every parameter on test, whether or not a line sets it; None if nothing was scored."""
    owners = {"model": result.metrics.get("test", {})}
    owners |= {rival: _on_test(result, rival) for rival in RIVALS}
    if not any(_near(name) in metrics for metrics in owners.values() for name in PARAMETERS):
        return None
    counts: list[int | None] = [None] * len(PARAMETERS)
    if test is not None:
        counts = [int(num) for num in np.count_nonzero(test.true.param_type, axis=0)]
    axis = charts.Axis.unit("")
    rows = []
    for name, num_values in zip(PARAMETERS, counts, strict=True):
        label = scores.metric_label(_near(name))
        own = {"test": owners["model"]}
        marks = tables.split_marks(label, own, _near(name), figures.ENSEMBLE)
        rows.append(
            ParameterRow(
                name=name,
                unit=UNITS[name],
                tolerance=tolerance_text(getattr(tolerance, name), UNITS[name]),
                num_values=num_values,
                near={who: metrics.get(_near(name)) for who, metrics in owners.items()},
                error={
                    who: metrics.get(f"param_value_mae_{name}") for who, metrics in owners.items()
                },
                chart=charts.whiskers(
                    [*marks, *_rival_marks(label, result, _near(name))],
                    axis,
                    width=_PARAMETERS_WIDTH,
                ),
            )
        )
    return ParameterTable(charts.whisker_axis(axis, width=_PARAMETERS_WIDTH), rows)


def tolerance_text(value: float | str, unit: str) -> str:
    """`0.1 in`, or `5 %` of the true value."""
    return f"{value.rstrip('% ')} %" if isinstance(value, str) else f"{value:g} {unit}"


def _near(parameter: str) -> str:
    return f"param_value_acc_{parameter}"


def _on_test(result: JobResult, rival: str) -> Metrics:
    return result.rivals.get(rival, {}).get("test", {})


def _rival_marks(label: str, result: JobResult, metric: str) -> list[Mark]:
    return [
        figures.score_mark(_on_test(result, rival)[metric], f"test {css}", f"{label}, {rival}")
        for rival, css in RIVALS.items()
        if metric in _on_test(result, rival)
    ]
