"""Figures of a sweep, as wide as the page: curves by rung, and parallel coordinates.

Beyond the charts of a run, each line can be pointed at as a whole: it says which trial it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from markupsafe import Markup

from ray_jobs.reporting.charts import Axis, add_text, new_svg, swatch, to_markup
from ray_jobs.reporting.curves import Floats, simplify
from ray_jobs.reporting.figures import LegendEntry
from ray_jobs.reporting.scores import metric_in_text, number, plural
from ray_jobs.sweeping.labels import config_text, short_keys, value_text
from ray_jobs.sweeping.result import SweepResult, TrialResult
from ray_jobs.sweeping.search import Space
from ray_jobs.sweeping.spec import Distribution, Value

WIDTH = 1020
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 44  # margins around the curves
_TOLERANCE = 0.25  # how far a thinned line may stray, in px
_NUM_SHADES = 6  # of classes shade-0 ... in sweep_report.css
_MAX_LISTED = 7  # whole numbers that an axis lists one by one
_TICK_ROOM = 30  # for a rung's label, in px
WINNER = "s-ensemble"


@dataclass(frozen=True)
class WideFigure:
    chart: Markup
    legend: list[LegendEntry]
    caption: str


def shades(sweep: SweepResult) -> dict[int | None, str]:
    """A CSS class for each rung (epochs; None: below the first), the higher the deeper."""
    levels = [None, *sweep.rungs]
    return {
        level: f"shade-{round(index * (_NUM_SHADES - 1) / (len(levels) - 1))}"
        for index, level in enumerate(levels)
    }


def learning_curves(sweep: SweepResult) -> WideFigure | None:
    """Each trial's best value so far by epoch; None where no trial has a value."""
    curves = {trial.id: _best_so_far(sweep, trial) for trial in sweep.trials}
    curves = {trial: curve for trial, curve in curves.items() if np.isfinite(curve).any()}
    if not curves:
        return None
    y_axis, is_cut = _curves_axis(sweep, curves)
    x_axis = Axis("Epoch", 0, sweep.rungs[-1], (0, *sweep.rungs))
    svg = new_svg(WIDTH, 420, "Best value so far of every trial by epoch", css="chart wide")
    _curves_frame(svg, x_axis, y_axis, 420)
    css, hidden = shades(sweep), 0
    for trial in _winner_last(sweep):
        if trial.id not in curves:
            continue
        epochs = np.arange(1.0, len(curves[trial.id]) + 1)
        points = _within(np.column_stack([epochs, curves[trial.id]]), y_axis)
        if not len(points):
            hidden += 1
            continue
        pixels = np.column_stack(
            [
                x_axis.place(points[:, 0], _LEFT, WIDTH - _RIGHT),
                y_axis.place(points[:, 1], 420 - _BOTTOM, _TOP),
            ]
        )
        kept = pixels[simplify(pixels, _TOLERANCE)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        path += "h0" if len(kept) == 1 else ""  # with round caps, a dot
        _line(svg, path, _style(sweep, trial, css[trial.rung]), describe(sweep, trial))
    cut = " The axis leaves out the first epochs." if is_cut else ""
    cut += f" {plural(hidden, 'trial')} never came into its range." if hidden else ""
    return WideFigure(
        to_markup(svg),
        _rung_legend(sweep, css),
        f"Best {metric_in_text(sweep.objective.metric)} on validation so far"
        f"{', which is what is compared at the rungs (dashed)' if len(sweep.rungs) > 1 else ''}."
        f"{cut} Point at a line for its trial.",
    )


def parallel_coordinates(sweep: SweepResult, space: Space) -> WideFigure | None:
    """One axis a hyperparameter, the best value last; None where no trial has a value."""
    bests = {trial.id: trial.best_value for trial in sweep.trials if trial.best_value is not None}
    if not bests:
        return None
    low, high = visible_range(list(bests.values()), sweep.objective.mode)
    objective = Axis.around("", [low, high])
    top, bottom, height = 58, 376, 392
    svg = new_svg(
        WIDTH, height, "Hyperparameters and best value of every trial", css="chart wide parallel"
    )
    keys = sorted(space)
    stops = np.linspace(70, WIDTH - 70, len(keys) + 1)
    for trial in _winner_last(sweep):
        shares = [_share(space[key], trial.config[key]) for key in keys]
        css = "lost"
        if trial.best_value is not None:
            shares.append(float(np.clip(objective.place(trial.best_value, 0, 1), 0, 1)))
            quality = np.clip((trial.best_value - low) / ((high - low) or 1.0), 0, 1)
            quality = quality if sweep.objective.mode == "max" else 1 - quality
            css = f"shade-{round(float(quality) * (_NUM_SHADES - 1))}"
        points = [
            (x, bottom - share * (bottom - top)) for x, share in zip(stops, shares, strict=False)
        ]
        _line(svg, _flow(points), _style(sweep, trial, css), describe(sweep, trial))
    for x, key in zip(stops, keys, strict=False):
        ticks = _ticks(space[key])
        _upright_axis(svg, float(x), top, bottom, ticks, *_axis_name(key, keys))
    ticks = [(float(objective.place(t, 0, 1)), f"{t:.4g}") for t in objective.ticks]
    first, _, last = f"best {metric_in_text(sweep.objective.metric)}".rpartition(" ")
    _upright_axis(svg, float(stops[-1]), top, bottom, ticks, first, last)
    legend = [LegendEntry("winner", swatch(WINNER)), LegendEntry("best", swatch("shade-5"))]
    legend.append(LegendEntry("worst", swatch("shade-0")))
    num_lost = len(sweep.trials) - len(bests)
    if num_lost:
        legend.append(LegendEntry("without a value", swatch("lost"), f"{num_lost}"))
    num_beyond = sum(not low <= value <= high for value in bests.values())
    beyond = f" {plural(num_beyond, 'trial')} beyond it lie on its edge." if num_beyond else ""
    return WideFigure(
        to_markup(svg),
        legend,
        "A trial's best value is of as many epochs as it was trained: what was stopped early had "
        f"less time to become good.{beyond}",
    )


def describe(sweep: SweepResult, trial: TrialResult) -> str:
    """One trial in a line, to be shown on hover."""
    best = f"best {number(trial.best_value)}"
    best += f" at epoch {trial.best_epoch}" if trial.best_epoch else ""
    winner = ", the winner" if trial.id == sweep.winner else ""
    epochs = plural(trial.epochs, "epoch")
    return f"Trial {trial.id}{winner}: {best}, {epochs}; {config_text(trial.config)}"


def visible_range(values: Sequence[float], mode: str) -> tuple[float, float]:
    """Extent of the values without those far worse than the rest (Tukey's fence: beyond the worse
    quartile by 1.5 interquartile ranges)."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (upper - lower)
    if mode == "max":
        return min(value for value in values if value >= lower - reach), max(values)
    return min(values), max(value for value in values if value <= upper + reach)


def _best_so_far(sweep: SweepResult, trial: TrialResult) -> Floats:
    """Shape [E]; NaN before the first finite value."""
    values = np.array([np.nan if value is None else value for value in trial.history], dtype=float)
    best = np.fmax if sweep.objective.mode == "max" else np.fmin
    return best.accumulate(values)


def _curves_axis(sweep: SweepResult, curves: Mapping[str, Floats]) -> tuple[Axis, bool]:
    """From where the trials stood early on: what they began with would press the differences that
    count into a strip. Also whether that cuts a curve."""
    early = max(1, min(sweep.rungs[0] // 2, sweep.rungs[-1] // 10))
    known = [curve[np.isfinite(curve)] for curve in curves.values()]
    edges = [float(curve[min(early, len(curve)) - 1]) for curve in known]
    low, high = visible_range(edges, sweep.objective.mode)
    ends = [float(curve[-1]) for curve in known]
    axis = Axis.around(
        f"Best {metric_in_text(sweep.objective.metric)} so far",
        [low, max(ends)] if sweep.objective.mode == "max" else [min(ends), high],
    )
    return axis, any(not axis.low <= curve[0] <= axis.high for curve in known)


def _within(points: Floats, axis: Axis) -> Floats:
    """The part of a monotone curve [E, 2] that lies on the axis, from where it enters it."""
    points = points[np.isfinite(points[:, 1])]
    inside = (points[:, 1] >= axis.low) & (points[:, 1] <= axis.high)
    if not inside.any() or inside.all():
        return points[inside]
    first = int(np.argmax(inside))
    edge = axis.low if points[first - 1, 1] < axis.low else axis.high
    (x1, y1), (x2, y2) = points[first - 1], points[first]
    return np.vstack([[x1 + (x2 - x1) * (edge - y1) / (y2 - y1), edge], points[first:]])


def _curves_frame(svg: Element, x_axis: Axis, y_axis: Axis, height: int) -> None:
    """Gridlines of the values, and an upright line a rung."""
    bottom, right = height - _BOTTOM, WIDTH - _RIGHT
    for tick in y_axis.ticks:
        y = float(y_axis.place(tick, bottom, _TOP))
        segment(svg, "grid", _LEFT, y, right, y)
        add_text(svg, _LEFT - 7, y + 4, f"{tick:.4g}".replace("-", "−"), anchor="end")
    labelled = math.inf
    for tick in reversed(x_axis.ticks):  # the last rungs are the rarest: they get their labels
        x = float(x_axis.place(tick, _LEFT, right))
        segment(svg, "rung" if tick else "grid", x, _TOP, x, bottom)
        if labelled - x > _TICK_ROOM:
            add_text(svg, x, bottom + 16, f"{tick:,}", anchor="middle")
            labelled = x
    add_text(svg, (_LEFT + right) / 2, height - 6, x_axis.label, anchor="middle", css="axis-label")
    name = add_text(svg, 0, 0, y_axis.label, anchor="middle", css="axis-label")
    name.set("transform", f"translate(12 {(_TOP + bottom) / 2:.1f}) rotate(-90)")


def _rung_legend(sweep: SweepResult, css: Mapping[int | None, str]) -> list[LegendEntry]:
    entries = [LegendEntry(f"winner, trial {sweep.winner}", swatch(WINNER))]
    for level, style in reversed(list(css.items())):
        num = sum(trial.rung == level for trial in sweep.trials)
        if num:
            name = f"reached epoch {level:,}" if level else f"ended before epoch {sweep.rungs[0]:,}"
            entries.append(LegendEntry(name, swatch(style), plural(num, "trial")))
    return entries


def _winner_last(sweep: SweepResult) -> list[TrialResult]:
    """In the order of drawing: the higher the rung, the later; the winner on top."""
    return sorted(sweep.trials, key=lambda t: (t.id == sweep.winner, t.rung or 0, t.id))


def _style(sweep: SweepResult, trial: TrialResult, css: str) -> str:
    return WINNER if trial.id == sweep.winner else css


def _line(svg: Element, path: str, css: str, title: str) -> None:
    """A line that can be pointed at a little beside it, too."""
    group = SubElement(svg, "g", {"class": "trial"})
    SubElement(group, "title").text = title
    SubElement(group, "path", {"class": "reach", "d": path})
    SubElement(group, "path", {"class": f"line {css}", "d": path})


def _flow(points: Sequence[tuple[float, float]]) -> str:
    """A path through points that crosses every axis level, so that it can be told from others."""
    (x, y), *rest = points
    path = f"M{x:.1f} {y:.1f}"
    for next_x, next_y in rest:
        middle = (x + next_x) / 2
        path += f"C{middle:.1f} {y:.1f} {middle:.1f} {next_y:.1f} {next_x:.1f} {next_y:.1f}"
        x, y = next_x, next_y
    return path


def _share(distribution: Distribution, value: Value) -> float:
    """Where a value stands on its axis, 0 at the foot and 1 at the top."""
    if distribution.values is not None:
        last = len(distribution.values) - 1
        return distribution.values.index(value) / last if last else 0.5
    assert distribution.low is not None
    assert distribution.high is not None
    low, high, at = distribution.low, distribution.high, float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _ticks(distribution: Distribution) -> list[tuple[float, str]]:
    """Places and texts: all values of a list, else both ends and the middle."""
    listed = distribution.values
    if listed is None:
        assert distribution.low is not None
        assert distribution.high is not None
        low, high = distribution.low, distribution.high
        middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
        listed = [low, middle, high]
        if distribution.integer:
            whole = range(int(low), int(high) + 1)
            listed = list(whole) if len(whole) <= _MAX_LISTED else [int(low), int(high)]
    return [(_share(distribution, value), value_text(value)) for value in listed]


def _axis_name(key: str, keys: Sequence[str]) -> tuple[str, str]:
    """The two lines above an axis: the section of the job description, and the key in it."""
    name = short_keys(keys)[key]
    return ("", key) if name == key else (key.removesuffix(f".{name}"), name)


def _upright_axis(
    svg: Element,
    x: float,
    top: float,
    bottom: float,
    ticks: Sequence[tuple[float, str]],
    section: str,
    name: str,
) -> None:
    segment(svg, "axis", x, top, x, bottom)
    add_text(svg, x, 18, section, anchor="middle")
    add_text(svg, x, 34, name, anchor="middle", css="axis-label")
    for share, text in ticks:
        y = bottom - share * (bottom - top)
        segment(svg, "axis", x - 3, y, x + 3, y)
        add_text(svg, x + 7, y + 4, text, anchor="start", css="value")


def segment(svg: Element, css: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    SubElement(svg, "line", {"class": css, **ends})
