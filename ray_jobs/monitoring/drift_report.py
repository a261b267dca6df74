"""The page of a drift report: one HTML file that needs nothing beside itself, the worst first."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import SubElement

from markupsafe import Markup

from ray_jobs.monitoring.drift import MIN_SIZE, DriftReport, Finding, Histogram
from ray_jobs.reporting.charts import add_text, new_svg, to_markup
from ray_jobs.reporting.report import fill
from ray_jobs.reporting.scores import MISSING

_LEVELS = {"drift": "bad", "none": "good", "unknown": "caution"}
_HEADLINES = {
    "drift": "Live traffic is not what the model was trained on.",
    "none": "Live traffic looks like what the model was trained on.",
    "unknown": "There is not enough to say whether live traffic has drifted.",
}
_TESTS = {
    "ks": "Kolmogorov-Smirnov",
    "chi2": "chi-squared",
    "psi": "PSI",
    "missing": "missing",
    "out_of_range": "out of range",
}
_WIDTH, _HEIGHT, _ROOM = 320, 96, 16


@dataclass(frozen=True)
class _Row:
    """A finding as the page shows it."""

    finding: Finding
    level: str
    psi: str
    limit: str
    missing: str
    out_of_range: str
    size: str
    evidence: str
    chart: Markup | None


def render_drift_report(report: DriftReport) -> str:
    """The report as one HTML page, whatever was found."""
    rows = [_row(finding) for finding in report.findings]
    span = None
    if report.since and report.until:
        span = f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC"
    return fill(
        "drift_report.html.j2",
        ["report.css", "drift_report.css"],
        report=report,
        level=_LEVELS[report.status],
        headline=_HEADLINES[report.status],
        span=span,
        num_drifted=len(report.drifted()),
        rows=rows,
        charts=[row for row in rows if row.chart],
        min_size=MIN_SIZE,
    )


def _row(finding: Finding) -> _Row:
    return _Row(
        finding,
        _LEVELS[finding.status],
        psi=_number(finding.psi),
        limit=_number(finding.psi_limit),
        missing=f"{finding.missing_share:.1%}",
        out_of_range=MISSING
        if finding.out_of_range_share is None
        else f"{finding.out_of_range_share:.1%}",
        size=f"{finding.effective_size:,.0f}",
        evidence=_evidence(finding),
        chart=_chart(finding.name, finding.histogram) if finding.histogram else None,
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _evidence(finding: Finding) -> str:
    if finding.status == "unknown" or not finding.tests:
        return finding.reason
    strongest = min(finding.tests, key=lambda test: test.p)
    return f"p {strongest.p_adjusted:.2g} ({_TESTS[strongest.name]})"


def _chart(name: str, histogram: Histogram) -> Markup:
    """Shares of the reference and of the live values by bin, side by side."""
    svg = new_svg(_WIDTH, _HEIGHT, f"{name}: shares by bin, of the reference and of live values")
    svg.set("class", "chart shares")
    largest = max([*histogram.reference, *histogram.live, 1e-9])
    floor = _HEIGHT - _ROOM
    pitch = _WIDTH / len(histogram.bins)
    bins = zip(histogram.bins, histogram.reference, histogram.live, strict=True)
    for number, (label, before, now) in enumerate(bins):
        for place, css, share in ((0.1, "reference", before), (0.5, "live", now)):
            height = (floor - 2) * share / largest
            shape = {
                "class": f"bar {css}",
                "x": f"{(number + place) * pitch:.1f}",
                "y": f"{floor - height:.1f}",
                "width": f"{0.4 * pitch:.1f}",
                "height": f"{height:.1f}",
            }
            title = SubElement(SubElement(svg, "rect", shape), "title")
            title.text = f"{label}: {share:.1%} {css}"
    ends = {"x1": "0", "x2": str(_WIDTH), "y1": str(floor), "y2": str(floor)}
    SubElement(svg, "line", {"class": "grid", **ends})
    add_text(svg, 0, _HEIGHT - 3, _shortened(histogram.bins[0]), anchor="start")
    add_text(svg, _WIDTH, _HEIGHT - 3, _shortened(histogram.bins[-1]), anchor="end")
    return to_markup(svg)


def _shortened(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:19]}…"
