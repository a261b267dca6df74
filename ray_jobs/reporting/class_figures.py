"""The confusion matrix as a heat map: inline SVG for the report, PNG for a slide."""

from __future__ import annotations

import io
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.multiclass import confusion_matrix
from ray_jobs.reporting import charts
from ray_jobs.reporting.figures import Figure, reliability_figure
from ray_jobs.reporting.scores import percent
from ray_jobs.result import JobResult

MAX_DRAWN = 60  # classes; a cell of more could be neither seen nor pointed at
_MAX_NUMBERED = 12  # classes whose counts have room in the cells
_PLOT = 660  # of the cells together, in px
_CELL_SIZES = (17, 54)  # smallest and largest, in px
_MAX_LETTERS = 26  # of a class's name beside the cells
_LETTER = 6.4  # mean width, in px
_FAINTEST, _DEEPEST = 0.07, 0.62  # opacity: an error must not vanish, nor the count in its cell

Counts = NDArray[np.int64]


def top_label_figure(result: JobResult, test: ClassPredictions) -> Figure:
    """Reliability diagram of the confidence in the class named (Guo et al. 2017, fig. 1)."""
    return reliability_figure(
        result,
        (test.p.argmax(axis=1) == test.y).astype(np.int8),
        test.p.max(axis=1),
        model="the model",
        hit="right",
        probability="Confidence",
        frequency="Share named rightly",
    )


def confusion_heatmap(test: ClassPredictions) -> Markup | None:
    """Confusion matrix of test, as `matrix_heatmap` draws it."""
    return matrix_heatmap(confusion_matrix(test.y, test.p), test.classes)


def matrix_heatmap(matrix: Counts, classes: Sequence[str]) -> Markup | None:
    """A confusion matrix [C, C], each row shaded by its shares; None if too many classes take part.

    Rows are the classes that stand in test. Columns are the same, then those only named.
    """
    rows = np.flatnonzero(matrix.sum(axis=1))
    columns = np.r_[rows, np.setdiff1d(np.flatnonzero(matrix.sum(axis=0)), rows)]
    if len(columns) > MAX_DRAWN:
        return None
    cells = matrix[np.ix_(rows, columns)]
    names = [classes[index] for index in columns]
    size = int(np.clip(_PLOT // len(columns), *_CELL_SIZES))
    # Names stand slanted above the columns, and run out beyond the last one.
    longest = _LETTER * max(len(_shorten(name)) for name in names)
    left, top = longest + 30, 0.72 * longest + 40
    width, height = left + size * len(columns) + 0.72 * longest, top + size * len(rows) + 8
    svg = charts.new_svg(
        round(width),
        round(height),
        f"Confusion matrix of the test split, {len(rows)} true classes by {len(columns)} named",
        css="matrix",
        fixed=True,
    )
    frame = {"width": f"{size * len(columns)}", "height": f"{size * len(rows)}"}
    SubElement(svg, "rect", {"class": "track", "x": f"{left:.1f}", "y": f"{top:.1f}", **frame})
    _name_axes(svg, names, len(rows), left=left, top=top, size=size)
    _draw_cells(svg, cells, names, left=left, top=top, size=size)
    return charts.to_markup(svg)


def _name_axes(
    svg: Element, names: Sequence[str], num_rows: int, *, left: float, top: float, size: int
) -> None:
    middle = top + size * num_rows / 2
    true = charts.add_text(svg, 0, 0, "True", anchor="middle", css="axis-label")
    true.set("transform", f"translate(12 {middle:.1f}) rotate(-90)")
    charts.add_text(
        svg, left + size * len(names) / 2, 13, "Named", anchor="middle", css="axis-label"
    )
    for index, name in enumerate(names):
        if index < num_rows:
            y = top + size * (index + 0.5) + 4
            _titled(charts.add_text(svg, left - 7, y, _shorten(name), anchor="end"), name)
        label = charts.add_text(svg, 0, 0, _shorten(name), anchor="start")
        x = left + size * (index + 0.5) + 2
        label.set("transform", f"translate({x:.1f} {top - 7:.1f}) rotate(-45)")
        _titled(label, name)


def _titled(text: Element, name: str) -> None:
    if _shorten(name) != name:
        SubElement(text, "title").text = name


def _draw_cells(
    svg: Element, cells: Counts, names: Sequence[str], *, left: float, top: float, size: int
) -> None:
    support = cells.sum(axis=1)
    is_numbered = len(names) <= _MAX_NUMBERED
    for (i, j), cell_count in np.ndenumerate(cells):
        count = int(cell_count)
        x, y = left + size * j, top + size * i
        if count:
            share = count / int(support[i])
            opacity = _FAINTEST + (_DEEPEST - _FAINTEST) * share
            cell = SubElement(svg, "rect", {"class": "cell", **_square(x, y, size)})
            cell.set("fill-opacity", f"{opacity:.3f}")
            SubElement(cell, "title").text = (
                f"{names[i]} named {names[j]}: {count:,} ({percent(count, int(support[i]))} of "
                f"{support[i]:,})"
            )
            if is_numbered:
                charts.add_text(
                    svg, x + size / 2, y + size / 2 + 4, f"{count:,}", anchor="middle", css="count"
                )
        if i == j:
            SubElement(svg, "rect", {"class": "diagonal", **_square(x, y, size)})


def _square(x: float, y: float, size: int) -> dict[str, str]:
    edge = f"{size - 2}"
    return {"x": f"{x + 1:.1f}", "y": f"{y + 1:.1f}", "width": edge, "height": edge, "rx": "2"}


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…"


def confusion_png(matrix: Counts, classes: Sequence[str]) -> bytes:
    """A confusion matrix [C, C] as a PNG, each row shaded by its shares."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    num_classes = len(classes)
    side = float(np.clip(2.5 + 0.3 * num_classes, 5.5, 24))
    figure = Canvas(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    image = axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="Share of the true class")
    axes.set_xlabel("Named class")
    axes.set_ylabel("True class")
    if num_classes <= MAX_DRAWN:
        names = [_shorten(name) for name in classes]
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
        for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            label.set_parse_math(False)  # a $ in a class's name is a $
            label.set_fontsize(9)
    if num_classes <= _MAX_NUMBERED:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[i, j] > 0.6 else "black"
                axes.text(j, i, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    stream = io.BytesIO()
    # No version in the file: the same matrix makes the same bytes.
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
