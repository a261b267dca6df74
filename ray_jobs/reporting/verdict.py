"""The verdict: what a person should know of a run, in a sentence or two, from its result alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ray_jobs.reporting.scores import (
    inputs,
    interval,
    metric_in_text,
    metric_label,
    no_skill,
    number,
    plural,
    sign,
)
from ray_jobs.result import ColumnLeak, JobResult, MetricValue

Level = Literal["good", "caution", "bad", "open"]

_WIDE = 0.1  # an interval wider than this, of a score between 0 and 1, decides little
_TELLING_AUC = 0.99  # of a single column: hardly a measurement of something else
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


def assess(
    result: JobResult,
    warnings: Sequence[str] = (),
    *,
    first: Sequence[Finding] = (),
    headline: str | None = None,
) -> Verdict:
    """Weigh a result. Every number said stands in it, or follows from it by arithmetic.

    Args:
        warnings: further ones that a reader should meet before the score.
        first: what to know before all else.
        headline: of a score that is beyond no skill, instead of the usual one.
    """
    findings = [
        *first,
        *(finding for part in (_scores, _ceilings, _members) for finding in part(result)),
        *_leaks(result, " ".join(warnings)),
    ]
    findings += [Finding("warning", text) for text in warnings]
    if result.status == "FAILED":
        reason = result.reason or "it left no reason."
        return Verdict("bad", "Failed", f"The run failed: {reason}", _remains(result), findings)
    levels = {finding.level for finding in findings}
    num_warnings = sum(finding.level != "note" for finding in findings)
    suffix = f", {plural(num_warnings, 'warning')}" if num_warnings else ""
    label = f"{result.status.capitalize()}{suffix}"
    ending = " ".join(filter(None, [_UNFINISHED.get(result.status), result.reason]))
    test = _objective(result, "test")
    if test is not None:
        level: Level = "bad" if "fault" in levels else "caution" if "warning" in levels else "good"
        details = [_against_validation(result, test), *_choice(result), ending]
        return Verdict(level, label, _headline(result, test, headline), details, findings)
    if ending:
        return Verdict("open", label, ending, _remains(result), findings)
    name = metric_label(result.objective.metric)
    headline = f"The run ended, but it has no {name} on test: nothing here says how good it is."
    return Verdict("caution", label, headline, _remains(result), findings)


def _objective(result: JobResult, split: str) -> MetricValue | None:
    return result.metrics.get(split, {}).get(result.objective.metric)


def _in_full(score: MetricValue) -> str:
    known = score.low is not None and score.high is not None
    return f"{number(score.value)} ({interval(score)})" if known else number(score.value)


def _headline(result: JobResult, test: MetricValue, praise: str | None) -> str:
    score = f"{metric_label(result.objective.metric)} {number(test.value)}"
    data = result.data
    rows = data.splits.get("test") if data else None
    if data is None or rows is None:
        return f"It scores {score} on test."
    baseline = no_skill(result.objective.metric, result)
    if baseline is not None and not _beats(result, result.objective.metric, test, baseline):
        return (
            f"It is not shown to be better than no skill: {score} on test, where an answer that "
            f"never looks at the {inputs(result)} scores {number(baseline)}."
        )
    if praise:
        return praise
    if data.classes:
        metric = metric_in_text(result.objective.metric)
        rows_seen = plural(rows.num_rows, "picture" if data.scan else "row")
        return (
            f"The model names the class with {metric} {number(test.value)} on {rows_seen} it has "
            "never seen."
        )
    num, noun = (rows.num_groups, "group") if data.grouped_by else (rows.num_rows, "row")
    used = _used(result)
    who = used[0] if len(used) == 1 else "The ensemble"
    return f"{who} predicts {data.label} with {score} on {plural(num, noun)} it has never seen."


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
    """What was chosen, how rows were kept apart, and where the model went."""
    sentences = []
    used = _used(result)
    if result.ensemble and used:
        if len(used) == 1:
            choice = f"{used[0]} alone"
        else:
            members = plural(len(result.members), "member")
            choice = f"{result.ensemble.strategy}, {len(used)} of {members}"
        sentences.append(f"Chosen on validation: {choice}.")
    if result.data and result.data.grouped_by:
        sentences.append(f"Grouped by {result.data.grouped_by}.")
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


def _scores(result: JobResult) -> Iterator[Finding]:
    """The objective against validation and in itself, then against what is known beforehand."""
    metric = result.objective.metric
    name = metric_label(metric)
    test, val = _objective(result, "test"), _objective(result, "val")
    if test and val and _gap_is_large(test, val):
        is_worse = (test.value - val.value) * sign(metric, result) < 0
        side = "worse" if is_worse else "better"
        advice = "expect the test score" if is_worse else "the splits may differ in kind"
        yield Finding(
            "warning",
            f"{name} is {side} on test ({number(test.value)}) than on validation "
            f"({number(val.value)}) by more than chance explains: {advice}.",
        )
    if test and test.low is not None and test.high is not None and metric != "log_loss":
        width = test.high - test.low
        if width > _WIDE:
            yield Finding(
                "warning",
                f"The interval of {name} on test is {number(width)} wide ({interval(test)}): "
                "more test rows, or groups of them, would say more.",
            )
    for other in dict.fromkeys([metric, "auc"]):
        score, baseline = result.metrics.get("test", {}).get(other), no_skill(other, result)
        if score and baseline is not None and not _beats(result, other, score, baseline):
            yield Finding(
                "warning",
                f"{metric_label(other)} on test, {_in_full(score)}, is not beyond what no skill "
                f"scores: {number(baseline)}.",
            )


def _ceilings(result: JobResult) -> Iterator[Finding]:
    for metric, ceiling in (result.data.ceiling.get("test", {}) if result.data else {}).items():
        reached = result.metrics.get("test", {}).get(metric)
        if reached is None:
            continue
        name = metric_label(metric)
        if reached.low is not None and _beats(result, metric, reached, ceiling):
            yield Finding(
                "fault",
                f"{name} {_in_full(reached)} is better than its ceiling {number(ceiling)}, the "
                "score of the true probability: the evaluation is at fault.",
            )
        else:
            yield Finding(
                "note", f"Ceiling {name} {number(ceiling)}; reached {number(reached.value)}."
            )


def _members(result: JobResult) -> Iterator[Finding]:
    failed = [member for member in result.members if member.status in ("FAILED", "STOPPED")]
    if failed:
        reasons = [f"{member.name}: {member.reason or member.status.lower()}" for member in failed]
        num = f"{len(failed)} of {plural(len(result.members), 'member')}"
        yield Finding("warning", f"{num} failed. {'; '.join(reasons)}")
    for member in result.members:
        if member.degenerate:
            text = f"{member.name} is degenerate: its metrics stood still and it was stopped."
            if result.ensemble:
                weight = result.ensemble.weights.get(member.name)
                text += f" Its weight is {number(weight)}." if weight else " It is left out."
            yield Finding("warning", text)


def _leaks(result: JobResult, told: str) -> Iterator[Finding]:
    """Columns that give a target away, but for those that `told` names already."""
    if result.data is None:
        return
    leakage = result.data.leakage
    proven = [
        column
        for column in leakage.columns
        if column.auc is None and repr(column.column) not in told
    ]
    kept = [column for column in proven if not column.refused]
    if kept:
        yield Finding("warning", f"{_giving_away(kept)} and kept: no score is free of that.")
    refused = [column for column in proven if column.refused]
    if refused:
        yield Finding("note", f"{_giving_away(refused)} and refused.")
    telling = []
    for column in leakage.columns:
        if column.auc is None:
            continue
        alone = f"{column.column} alone reaches AUC {number(column.auc)}"
        if column.refused:
            yield Finding("note", f"Column {alone} and was refused.")
        elif column.auc >= _TELLING_AUC:
            yield Finding("warning", f"Column {alone} and was kept: it may give the label away.")
        else:
            telling.append(alone)
    if telling:
        more = f"; {plural(len(telling) - 3, 'column')} more" if telling[3:] else ""
        yield Finding("note", f"{'; '.join(telling[:3])}{more}.")
    duplicates = leakage.duplicates
    if duplicates.num_across_splits:
        rows = plural(duplicates.num_across_splits, "row")
        yield Finding("warning", f"{rows} of validation or test stand in train as well.")
    if duplicates.merged_groups:
        sets = plural(len(duplicates.merged_groups), "set")
        yield Finding("note", f"{sets} of groups that repeat each other were kept in one split.")


def _giving_away(columns: Sequence[ColumnLeak]) -> str:
    """`2 columns were found to give a target away (feed: F; posx: X)`."""
    each = "; ".join(f"{column.column}: {column.target or 'the label'}" for column in columns)
    verb = "was" if len(columns) == 1 else "were"
    return f"{plural(len(columns), 'column')} {verb} found to give a target away ({each})"


def _beats(result: JobResult, metric: str, score: MetricValue, baseline: float) -> bool:
    """Whether all of a score's interval, or the score if it has none, is better than `baseline`."""
    better = sign(metric, result)
    bound = score.low if better > 0 else score.high
    return ((score.value if bound is None else bound) - baseline) * better > 0


def _gap_is_large(test: MetricValue, val: MetricValue) -> bool | None:
    """Whether the two differ by more than chance explains; None where an interval is missing.

    The splits are independent, so variances add up: the half-widths that face each other, in
    quadrature.
    """
    below, above = sorted((test, val), key=lambda score: score.value)
    if below.high is None or above.low is None:
        return None
    return above.value - below.value > math.hypot(below.high - below.value, above.value - above.low)
