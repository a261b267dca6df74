"""Drift: whether live values come from the reference's distribution, by tests that raise a false
alarm in at most a stated share of all windows.

Each feature and output is tested in up to four ways, and Holm's step-down adjustment over all of
them keeps the rate of the family.

Shapes: N live values.

Sources: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70; N. Siddiqi, Credit Risk
Scorecards (2006) (PSI's conventions 0.1 and 0.25, which know no n).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import EXIT_OK, DriftFound
from ray_jobs.monitoring.reference import (
    Floats,
    Labels,
    Numbers,
    Reference,
    bin_counts,
    numbers,
)
from ray_jobs.monitoring.two_sample import (
    MIN_REFERENCE,
    Test,
    chi_squared,
    effective_size,
    kolmogorov_smirnov,
    missing,
    out_of_range,
    psi,
)

MIN_SIZE = 30  # independent values: below that nothing is said
_NUM_TOLD = 5  # names in a sentence

Status = Literal["drift", "none", "unknown"]
Role = Literal["feature", "output"]


@dataclass(frozen=True)
class Histogram:
    """Shares of the reference and of the live values, for people."""

    bins: tuple[str, ...]
    reference: tuple[float, ...]
    live: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """What the live values of one feature or output say."""

    name: str
    role: Role
    status: Status
    num: int  # live values, the missing ones among them
    effective_size: float  # independent ones that would say as much
    reference_size: float
    missing_share: float
    reference_missing_share: float
    out_of_range_share: float | None  # of live values, beyond the reference's least and greatest
    psi: float | None
    psi_limit: float | None  # what PSI stays below where nothing has drifted, at alpha alone
    tests: tuple[Test, ...]
    histogram: Histogram | None
    reason: str = ""  # why nothing is said

    @property
    def p_adjusted(self) -> float:
        return min((test.p_adjusted for test in self.tests), default=1.0)


@dataclass(frozen=True)
class Window:
    """Live values in order of time, by name; None: not measured."""

    features: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    outputs: Mapping[str, Sequence[float | str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftReport:
    """What a window says of a version."""

    model: str
    version: int
    source: str  # where the window came from
    status: Status
    reason: str  # in a sentence
    alpha: float
    num_requests: int  # or files
    num_rows: int
    num_skipped: int  # lines that are no records, or rows that the model cannot take
    since: datetime | None  # of the oldest record; None: the window is of files
    until: datetime | None
    findings: tuple[Finding, ...]  # the most drifted first

    @property
    def exit_code(self) -> int:
        return DriftFound.exit_code if self.status == "drift" else EXIT_OK

    def drifted(self) -> list[str]:
        """Names of features and outputs."""
        return [finding.name for finding in self.findings if finding.status == "drift"]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, default=lambda value: value.isoformat())


def conclude(findings: Sequence[Finding], alpha: float) -> tuple[Status, str]:
    """What all findings say together, and why."""
    drifted = [finding.name for finding in findings if finding.status == "drift"]
    unknown = [finding for finding in findings if finding.status == "unknown"]
    if drifted:
        return "drift", f"{_told(drifted)} drifted (false alarm rate {alpha:g})"
    if unknown:
        names = _told([finding.name for finding in unknown])
        return "unknown", f"{len(unknown)} of {len(findings)} cannot be judged ({names}): " + (
            unknown[0].reason
        )
    return "none", f"none of {len(findings)} drifted (false alarm rate {alpha:g})"


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_TOLD} more" if len(names) > _NUM_TOLD else ""
    return ", ".join(names[:_NUM_TOLD]) + more


def compare(reference: Reference, window: Window, alpha: float) -> list[Finding]:
    """Every feature and output of the reference, the most drifted first.

    Args:
        alpha: at most this share of windows in which nothing has drifted has a finding of drift.
    """
    findings = [
        _find(name, "feature", expected, window.features.get(name, ()), alpha)
        for name, expected in reference.features.items()
    ] + [
        _find(name, "output", expected, window.outputs.get(name, ()), alpha)
        for name, expected in reference.outputs.items()
    ]
    return sorted(_adjusted(findings, alpha), key=_badness)


def _badness(finding: Finding) -> tuple[Any, ...]:
    order: dict[Status, int] = {"drift": 0, "none": 1, "unknown": 2}
    return order[finding.status], finding.p_adjusted, -(finding.psi or 0.0), finding.name


def _adjusted(findings: Sequence[Finding], alpha: float) -> list[Finding]:
    """With Holm's p-values over the tests of all findings, and what follows from them."""
    p = np.array([test.p for finding in findings for test in finding.tests])
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    waiting = iter(adjusted.tolist())
    told = []
    for finding in findings:
        tests = tuple(replace(test, p_adjusted=next(waiting)) for test in finding.tests)
        told_of = replace(finding, tests=tests)
        if tests and told_of.p_adjusted <= alpha:
            told_of = replace(told_of, status="drift")
        told.append(told_of)
    return told


# One feature or output


def _find(
    name: str,
    role: Role,
    reference: Numbers | Labels,
    values: Sequence[Any],
    alpha: float,
) -> Finding:
    if isinstance(reference, Labels):
        return _find_labels(name, role, reference, [str(v) for v in values if v is not None], alpha)
    return _find_numbers(name, role, reference, numbers(values), alpha)


def _find_numbers(name: str, role: Role, reference: Numbers, x: Floats, alpha: float) -> Finding:
    known = x[~np.isnan(x)]
    edges = np.array(reference.edges)
    size = effective_size(known[:, None] <= edges, reference.group_effect)
    outside = _share((known < reference.low) | (known > reference.high))
    finding = Finding(
        name,
        role,
        "none",
        num=len(x),
        effective_size=size,
        reference_size=reference.effective_size,
        missing_share=_share(np.isnan(x)),
        reference_missing_share=reference.missing_share,
        out_of_range_share=outside,
        psi=None,
        psi_limit=None,
        tests=(),
        histogram=None,
    )
    tests: list[Test] = []
    missing_size = effective_size(np.isnan(x)[:, None], reference.group_effect)
    if min(missing_size, reference.num) >= MIN_SIZE:
        tests.append(missing(finding.missing_share, reference, missing_size))
    lacking = _lacking(size, reference.effective_size)
    if not lacking:
        counts = bin_counts(known, edges)
        shares = np.array(reference.shares)
        found, limit, psi_test = psi(
            counts / len(known), shares, size, reference.effective_size, alpha
        )
        tests += [
            kolmogorov_smirnov(known, reference, size),
            psi_test,
            out_of_range(outside, reference, size),
        ]
        histogram = Histogram(
            _intervals(reference.edges), reference.shares, tuple((counts / len(known)).tolist())
        )
        finding = replace(finding, psi=found, psi_limit=limit, histogram=histogram)
    is_known = bool(tests) and (not lacking or not reference.quantiles)
    return replace(
        finding,
        tests=tuple(tests),
        status="none" if is_known else "unknown",
        reason="" if is_known else lacking,
    )


def _find_labels(
    name: str, role: Role, reference: Labels, labels: Sequence[str], alpha: float
) -> Finding:
    names = [*reference.counts, *sorted(set(labels) - reference.counts.keys())]
    indicators = np.array([[label == one for one in names] for label in labels], bool)
    size = effective_size(indicators.reshape(len(labels), len(names)), reference.group_effect)
    lacking = _lacking(size, reference.effective_size)
    finding = Finding(
        name,
        role,
        "unknown" if lacking else "none",
        num=len(labels),
        effective_size=size,
        reference_size=reference.effective_size,
        missing_share=0.0,
        reference_missing_share=0.0,
        out_of_range_share=None,
        psi=None,
        psi_limit=None,
        tests=(),
        histogram=None,
        reason=lacking,
    )
    if lacking:
        return finding
    counts = Counter(labels)
    live = np.array([counts[one] for one in names]) / len(labels)
    expected = np.array([reference.counts.get(one, 0) for one in names]) / reference.num
    found, limit, psi_test = psi(live, expected, size, reference.effective_size, alpha)
    return replace(
        finding,
        psi=found,
        psi_limit=limit,
        tests=(chi_squared(live, expected, size, reference.effective_size), psi_test),
        histogram=Histogram(tuple(names), tuple(expected.tolist()), tuple(live.tolist())),
    )


def _lacking(size: float, reference_size: float) -> str:
    """Why nothing can be said; "": it can."""
    if reference_size < MIN_REFERENCE:
        return f"not enough in the reference (n < {MIN_REFERENCE} independent values)"
    if size < MIN_SIZE:
        return f"not enough (n < {MIN_SIZE} independent values)"
    return ""


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _intervals(edges: Sequence[float]) -> tuple[str, ...]:
    texts = [f"{edge:.4g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(texts)]
    return (f"up to {texts[0]}", *between, f"over {texts[-1]}")
