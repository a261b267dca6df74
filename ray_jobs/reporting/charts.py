"""Small charts as inline SVG: lines, histograms, whiskers, bars.

Not matplotlib: its SVG fixes colours and text sizes, so it neither follows the reader's dark mode
nor stays readable on a phone, has no values to hover over, and takes longer to import than a whole
report takes to draw. Colours and strokes live in `report.css` under the class names given here;
xml.etree escapes whatever text comes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup

from ray_jobs.reporting.curves import Floats, simplify

_WIDTH = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 42  # margins around the plot
_TOLERANCE = 0.25  # how far a thinned line may stray, in px: less than can be seen
_TOO_LARGE = 1e100  # for the arithmetic of an axis
_LABEL_ROOM, _TICK_ROOM = 8, 32  # beside whiskers, and for a label of their axis, in px


@dataclass(frozen=True)
class Axis:
    """A range of values, what to call it, and where to put its labels."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def unit(cls, label: str) -> Axis:
        return cls(label, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    @classmethod
    def around(cls, label: str, values: Iterable[float]) -> Axis:
        """An axis from one round number to another that holds all finite values."""
        low, high = _extent(values)
        step = _nice_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(index * step for index in range(first, last + 1))
        return cls(label, ticks[0], ticks[-1], ticks)

    @classmethod
    def whole(cls, label: str, values: Iterable[float]) -> Axis:
        """An axis of the values' own extent, labelled at whole numbers."""
        low, high = _extent(values)
        step = _nice_step(max((high - low) / 6, 1.0))
        ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
        return cls(label, low, high, tuple(index * step for index in ticks))

    def place(self, value: float | Floats, start: float, stop: float) -> Floats:
        """Where values fall between the pixels `start` and `stop`."""
        share = (np.asarray(value, dtype=float) - self.low) / (self.high - self.low)
        return start + share * (stop - start)


def _extent(values: Iterable[float]) -> tuple[float, float]:
    """Least and greatest of the values an axis can hold, set apart where they meet."""
    held = [float(value) for value in values if abs(value) < _TOO_LARGE]
    low, high = (min(held), max(held)) if held else (0.0, 1.0)
    if not math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        return low, high
    room = max(abs(low) / 10, 0.1)
    return low - room, high + room


def _nice_step(raw: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) from `raw` up.

    Source: Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990.
    """
    power = 10.0 ** math.floor(math.log10(raw))
    return next(nice * power for nice in (1, 2, 5, 10) if nice * power >= raw * 0.999)


@dataclass(frozen=True)
class Line:
    css: str
    x: Floats  # [P]
    y: Floats  # [P]; a NaN breaks the line


@dataclass(frozen=True)
class Dot:
    css: str
    x: float
    y: float
    title: str  # shown on hover


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_axis: Axis,
    y_axis: Axis,
    dots: Sequence[Dot] = (),
    references: Sequence[Line] = (),
    height: int = 340,
) -> Markup:
    """Lines over two axes. Of two lines the later lies on top; `references` lie beneath all."""
    svg = new_svg(_WIDTH, height, label)
    _frame(svg, x_axis, y_axis, height)

    def pixels(x: Floats, y: Floats) -> Floats:
        return np.column_stack(
            [x_axis.place(x, _LEFT, _WIDTH - _RIGHT), y_axis.place(y, height - _BOTTOM, _TOP)]
        )

    for line in [*references, *lines]:
        for run in _finite_runs(pixels(line.x, line.y)):
            points = run[simplify(run, _TOLERANCE)]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            if len(points) == 1:
                path += "h0"  # with round caps, a dot
            SubElement(svg, "path", {"class": f"line {line.css}", "d": path})
    for dot in dots:
        (x, y) = pixels(np.array([dot.x]), np.array([dot.y]))[0]
        circle = SubElement(
            svg, "circle", {"class": dot.css, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "5"}
        )
        SubElement(circle, "title").text = dot.title
    return to_markup(svg)


def histogram(counts: Sequence[int], titles: Sequence[str], *, label: str, x_axis: Axis) -> Markup:
    """Counts in bins of equal width over the x axis, on a logarithmic scale from 1."""
    height = 130
    decades = max(1, math.ceil(math.log10(max([*counts, 1]) + 1)))
    ticks = range(0, decades + 1, 1 if decades < 4 else 2)
    y_axis = Axis("Rows (log)", -0.3, decades, tuple(ticks))
    svg = new_svg(_WIDTH, height, label)
    _frame(svg, x_axis, y_axis, height, y_texts=[_short(10**tick) for tick in ticks])
    width = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    for index, (num, title) in enumerate(zip(counts, titles, strict=True)):
        if num:
            top = float(y_axis.place(math.log10(num), height - _BOTTOM, _TOP))
            shape = {
                "x": f"{_LEFT + index * width + 1:.1f}",
                "y": f"{top:.1f}",
                "width": f"{width - 2:.1f}",
                "height": f"{height - _BOTTOM - top:.1f}",
            }
            bar = SubElement(svg, "rect", {"class": "bar", **shape})
            SubElement(bar, "title").text = title
    return to_markup(svg)


@dataclass(frozen=True)
class Mark:
    """A value and its interval, as one whisker."""

    css: str
    value: float
    low: float | None
    high: float | None
    title: str


def whiskers(
    marks: Sequence[Mark],
    axis: Axis,
    *,
    width: int,
    landmarks: Mapping[str, float] = MappingProxyType({}),
) -> Markup:
    """Values with their intervals, one above the other, for a table's cell; landmarks upright."""
    pitch = 12
    height = pitch * max(len(marks), 1) + 4
    label = "; ".join(mark.title for mark in marks) or "no value"
    svg = new_svg(width, height, label, css="whiskers", fixed=True)
    start, stop = _LABEL_ROOM, width - _LABEL_ROOM
    for tick in axis.ticks:
        _upright(svg, "grid", float(axis.place(tick, start, stop)), 0, height)
    for name, value in landmarks.items():
        css = f"landmark {name.lower().replace(' ', '-')}"
        upright = _upright(svg, css, float(axis.place(value, start, stop)), 0, height)
        SubElement(upright, "title").text = f"{name}: {value:.3f}"
    for index, mark in enumerate(marks):
        y = f"{pitch * index + pitch / 2 + 2:.1f}"
        group = SubElement(svg, "g", {"class": mark.css})
        SubElement(group, "title").text = mark.title
        if mark.low is not None and mark.high is not None:
            low, high = (f"{float(axis.place(v, start, stop)):.1f}" for v in (mark.low, mark.high))
            SubElement(group, "line", {"class": "whisker", "x1": low, "x2": high, "y1": y, "y2": y})
        x = f"{float(axis.place(mark.value, start, stop)):.1f}"
        SubElement(group, "circle", {"class": "dot", "cx": x, "cy": y, "r": "4"})
    return to_markup(svg)


def whisker_axis(axis: Axis, *, width: int) -> Markup:
    """The labels of the axis that a column of whiskers shares."""
    svg = new_svg(width, 14, "", css="whiskers", fixed=True)
    texts = _tick_texts(axis.ticks)
    every = math.ceil(len(texts) * _TICK_ROOM / width)
    for index in range(0, len(texts), every):
        x = float(axis.place(axis.ticks[index], _LABEL_ROOM, width - _LABEL_ROOM))
        # The outermost labels turn inwards, so that they are not cut off.
        anchor = {0: "start", len(axis.ticks) - 1: "end"}.get(index, "middle")
        x += {"start": -_LABEL_ROOM, "end": _LABEL_ROOM, "middle": 0}[anchor]
        add_text(svg, x, 11, texts[index], anchor=anchor)
    return to_markup(svg)


def bar(value: float, *, low: float, high: float, css: str, label: str) -> Markup:
    """One horizontal bar from zero to `value`, on an axis from `low` to `high` that holds zero."""
    axis = Axis("", low, high if high > low else low + 1, ())
    zero, end = (float(axis.place(edge, 0, 100)) for edge in (0.0, value))
    svg = new_svg(100, 10, label, css="bar-cell")
    svg.set("preserveAspectRatio", "none")
    SubElement(svg, "rect", {"class": "track", "x": "0", "y": "0", "width": "100", "height": "10"})
    shape = {"x": f"{min(zero, end):.2f}", "width": f"{abs(end - zero):.2f}"}
    SubElement(svg, "rect", {"class": f"bar {css}", "y": "0", "height": "10", **shape})
    return to_markup(svg)


def swatch(css: str) -> Markup:
    """A line's colour and dashes, for a legend."""
    svg = Element("svg", {"class": "swatch", "viewBox": "0 0 22 8", "aria-hidden": "true"})
    SubElement(svg, "path", {"class": f"line {css}", "d": "M1 4H21"})
    return to_markup(svg)


def _frame(
    svg: Element, x_axis: Axis, y_axis: Axis, height: int, y_texts: Sequence[str] | None = None
) -> None:
    """Gridlines, tick labels and the names of both axes."""
    right, bottom = _WIDTH - _RIGHT, height - _BOTTOM
    for tick, text in zip(y_axis.ticks, y_texts or _tick_texts(y_axis.ticks), strict=True):
        y = float(y_axis.place(tick, bottom, _TOP))
        edges = {"x1": str(_LEFT), "x2": str(right), "y1": f"{y:.1f}", "y2": f"{y:.1f}"}
        SubElement(svg, "line", {"class": "grid", **edges})
        add_text(svg, _LEFT - 7, y + 4, text, anchor="end")
    for tick, text in zip(x_axis.ticks, _tick_texts(x_axis.ticks), strict=True):
        x = float(x_axis.place(tick, _LEFT, right))
        _upright(svg, "grid", x, _TOP, bottom)
        add_text(svg, x, bottom + 16, text, anchor="middle")
    add_text(svg, (_LEFT + right) / 2, height - 6, x_axis.label, anchor="middle", css="axis-label")
    name = add_text(svg, 0, 0, y_axis.label, anchor="middle", css="axis-label")
    name.set("transform", f"translate(11 {(_TOP + bottom) / 2:.1f}) rotate(-90)")


def _finite_runs(points: Floats) -> list[Floats]:
    """Cut a line where a value is missing. Shape [P, 2] -> several [Q, 2]."""
    finite = np.isfinite(points).all(axis=1)
    edges = np.flatnonzero(np.diff(np.r_[False, finite, False]))
    return [points[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """All ticks of an axis with as many decimals as the step between them needs."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{decimals}f}".replace("-", "−") for tick in ticks]


def _short(power_of_ten: int) -> str:
    return f"{power_of_ten}" if power_of_ten < 1000 else f"{power_of_ten // 1000}k"


def new_svg(
    width: int, height: int, label: str, *, css: str = "chart", fixed: bool = False
) -> Element:
    size = {"width": str(width), "height": str(height)} if fixed else {}
    role = {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return Element("svg", {"class": css, "viewBox": f"0 0 {width} {height}", **size, **role})


def _upright(svg: Element, css: str, x: float, y1: float, y2: float) -> Element:
    edges = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": f"{y1:.1f}", "y2": f"{y2:.1f}"}
    return SubElement(svg, "line", {"class": css, **edges})


def add_text(
    svg: Element, x: float, y: float, content: str, *, anchor: str, css: str = "tick"
) -> Element:
    text = SubElement(
        svg, "text", {"class": css, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    )
    text.text = content
    return text


def to_markup(svg: Element) -> Markup:
    return Markup(tostring(svg, encoding="unicode"))  # noqa: S704 - built and escaped by xml.etree
