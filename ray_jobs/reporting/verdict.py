"""The verdict: what a person should know and do about a run, in a sentence or two, from its result alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ray_jobs.reporting.scores import (
    interval,
    metric_label,
    no_skill,
    number,
    plural,
    sign,
)
from ray_jobs.result import JobResult, MetricValue

Level = Literal["good", "caution", "bad", "open"]

_WIDE = 0.1  # an interval wider than this, of a score between 0 and 1, decides little
_UNFINISHED = {
    "PENDING": "The run has not started.",
    "RUNNING": "The run has not ended.",
    "STOPPED": "The run was stopped before it ended.",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know before trusting the score."""

    level: Literal["note", "warning", "fault"]
    text: str


@dataclass(frozen=True)
class Verdict:
    level: Level
    label: str
    headline: str
    details: list[str]
    findings: list[Finding]


def assess(result: JobResult) -> Verdict:
    """Weigh a result. Every number in the text stands in the result or follows from it by arithmetic."""
    findings = [*_scores(result), *_members(result), *_leaks(result)]
    num_warnings = sum(finding.level != "note" for finding in findings)
    warnings = f", {plural(num_warnings, 'warning')}" if num_warnings else ""
    if result.status == "FAILED":
        reason = result.reason or "it left no reason"
        return Verdict("bad", "Failed", f"The run failed: {reason}", _remains(result), findings)
    if result.status in _UNFINISHED:
        headline = " ".join(filter(None, [_UNFINISHED[result.status], result.reason]))
        return Verdict("open", result.status.capitalize(), headline, _remains(result), findings)
    label = f"Succeeded{warnings}"
    test = _objective(result, "test")
    if test is None:
        name = metric_label(result.objective.metric)
        headline = f"The run ended, but it has no {name} on test: nothing here says how good it is."
        return Verdict("caution", label, headline, _remains(result), findings)
    if any(finding.level == "fault" for finding in findings):
        level: Level = "bad"
    else:
        level = "caution" if num_warnings else "good"
    details = [_against_validation(result, test), *_choice(result)]
    return Verdict(level, label, _headline(result, test), details, findings)


def _objective(result: JobResult, split: str) -> MetricValue | None:
    return result.metrics.get(split, {}).get(result.objective.metric)


def _headline(result: JobResult, test: MetricValue) -> str:
    score = f"{metric_label(result.objective.metric)} {number(test.value)}"
    data = result.data
    rows = data.splits.get("test") if data else None
    if data is None or rows is None:
        return f"It scores {score} on test."
    baseline = no_skill(result.objective.metric, result)
    if baseline is not None and not _beats(result, result.objective.metric, test, baseline):
        return f"It has learned nothing certain about {data.label}: {score} on test, where no skill scores {number(baseline)}."
    if data.grouped_by:
        where = f"{plural(rows.num_groups, 'group')} (by {data.grouped_by})"
    else:
        where = plural(rows.num_rows, "row")
    used = _used(result)
    who = used[0] if len(used) == 1 else "The ensemble"
    return f"{who} predicts {data.label} with {score} on {where} it has never seen."


def _against_validation(result: JobResult, test: MetricValue) -> str:
    val = _objective(result, "val")
    spread = f"95 % interval {interval(test)}." if test.low is not None else "No interval is known."
    if val is None:
        return f"{spread} There is no validation score to compare it with."
    gap = test.value - val.value
    side = "below" if gap < 0 else "above"
    distance = f"{number(abs(gap))} {side} validation ({number(val.value)})"
    if _gap_is_large(test, val) is None:
        return f"{spread} Test is {distance}."
    luck = "more than chance explains" if _gap_is_large(test, val) else "which chance can explain"
    return f"{spread} Test is {distance}, {luck}."


def _choice(result: JobResult) -> list[str]:
    sentences = []
    if result.ensemble:
        used = _used(result)
        strategy = result.ensemble.strategy
        if len(used) == 1:
            sentences.append(f"Chosen on validation: {used[0]} alone ({strategy}).")
        else:
            members = plural(len(result.members), "member")
            sentences.append(f"Chosen on validation: {strategy}, of {len(used)} of {members}.")
    if result.model:
        sentences.append(f"Registered as {result.model.name} version {result.model.version}.")
    return sentences


def _used(result: JobResult) -> list[str]:
    """The members that have a say in the ensemble."""
    weights = result.ensemble.weights if result.ensemble else {}
    return [name for name, weight in weights.items() if weight]


def _remains(result: JobResult) -> list[str]:
    """What an unfinished or failed run has left."""
    fitted = sum(member.status == "SUCCEEDED" for member in result.members)
    sentences = []
    if result.members:
        sentences.append(f"{fitted} of {plural(len(result.members), 'member')} fitted.")
    if _objective(result, "test") is None:
        sentences.append("There is no test score.")
    return sentences + _choice(result)


def _scores(result: JobResult) -> list[Finding]:
    """The objective against validation, its own interval, no skill, and a known ceiling."""
    metric = result.objective.metric
    name = metric_label(metric)
    test, val = _objective(result, "test"), _objective(result, "val")
    findings = []
    if test and val and _gap_is_large(test, val):
        if (test.value - val.value) * sign(metric, result) < 0:
            findings.append(
                Finding(
                    "warning",
                    f"{name} is worse on test ({number(test.value)}) than on validation "
                    f"({number(val.value)}) by more than chance explains: expect the test score.",
                )
            )
        else:
            findings.append(
                Finding(
                    "warning",
                    f"{name} is better on test ({number(test.value)}) than on validation "
                    f"({number(val.value)}) by more than chance explains: the splits may differ "
                    "in kind.",
                )
            )
    if (
        test
        and test.low is not None
        and test.high is not None
        and metric != "log_loss"
        and test.high - test.low > _WIDE
    ):
        findings.append(
            Finding(
                "warning",
                f"The interval of {name} on test is {number(test.high - test.low)} wide "
                f"({interval(test)}): more test groups would say more.",
            )
        )
    for other in dict.fromkeys([metric, "auc"]):
        score, baseline = result.metrics.get("test", {}).get(other), no_skill(other, result)
        if score and baseline is not None and not _beats(result, other, score, baseline):
            findings.append(
                Finding(
                    "warning",
                    f"{metric_label(other)} on test, {number(score.value)} ({interval(score)}), is "
                    f"not beyond what no skill scores: {number(baseline)}.",
                )
            )
    return findings + _ceilings(result)


def _ceilings(result: JobResult) -> list[Finding]:
    findings = []
    for metric, ceiling in (result.data.ceiling.get("test", {}) if result.data else {}).items():
        reached = result.metrics.get("test", {}).get(metric)
        if reached is None:
            continue
        name = metric_label(metric)
        better = sign(metric, result)
        bound = reached.low if better > 0 else reached.high
        if bound is not None and (bound - ceiling) * better > 0:
            findings.append(
                Finding(
                    "fault",
                    f"{name} {number(reached.value)} ({interval(reached)}) is better than its "
                    f"ceiling {number(ceiling)}, the score of the true probability: "
                    "the evaluation is at fault.",
                )
            )
        else:
            findings.append(
                Finding(
                    "note", f"Ceiling {name} {number(ceiling)}; reached {number(reached.value)}."
                )
            )
    return findings


def _members(result: JobResult) -> list[Finding]:
    findings = []
    failed = [member for member in result.members if member.status != "SUCCEEDED"]
    if failed:
        named = "; ".join(
            f"{member.name}: {member.reason or member.status.lower()}" for member in failed
        )
        findings.append(
            Finding(
                "warning", f"{len(failed)} of {len(result.members)} members did not fit. {named}"
            )
        )
    weights = result.ensemble.weights if result.ensemble else {}
    for member in result.members:
        if member.degenerate:
            weight = weights.get(member.name)
            carries = "" if weight is None else f" Its weight is {number(weight)}."
            findings.append(
                Finding(
                    "warning",
                    f"{member.name} is degenerate: its metrics stood still, so its training was "
                    f"stopped.{carries}",
                )
            )
    return findings


def _leaks(result: JobResult) -> list[Finding]:
    if result.data is None:
        return []
    findings = []
    leakage = result.data.leakage
    for column in leakage.columns:
        alone = f"column {column.column} predicts the label alone (AUC {number(column.auc)})"
        if column.refused:
            findings.append(Finding("note", f"Left out: {alone}."))
        else:
            findings.append(Finding("warning", f"Kept: {alone}."))
    duplicates = leakage.duplicates
    if duplicates.num_across_splits:
        rows = plural(duplicates.num_across_splits, "row")
        findings.append(Finding("warning", f"{rows} of validation or test stand in train as well."))
    if duplicates.merged_groups:
        sets = plural(len(duplicates.merged_groups), "set")
        findings.append(
            Finding("note", f"{sets} of groups that repeat each other were kept in one split.")
        )
    return findings


def _beats(result: JobResult, metric: str, score: MetricValue, baseline: float) -> bool:
    """Whether a score's whole interval, or the score where there is none, is better than the baseline."""
    better = sign(metric, result)
    bound = score.low if better > 0 else score.high
    return ((score.value if bound is None else bound) - baseline) * better > 0


def _gap_is_large(test: MetricValue, val: MetricValue) -> bool | None:
    """Whether test and validation differ by more than chance explains; None where an interval is missing.

    The splits are independent, so their variances add up: the half-widths that face each other, in quadrature.
    """
    below, above = sorted((test, val), key=lambda score: score.value)
    if below.high is None or above.low is None:
        return None
    return above.value - below.value > math.hypot(below.high - below.value, above.value - above.low)
