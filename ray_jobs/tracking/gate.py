"""The promotion gate: what a version has to show, judged rule by rule. No file is read here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_jobs.result import Objective
from ray_jobs.tracking.margin import Margin, Scored, margin
from ray_jobs.tracking.promotion_spec import PromotionSpec

Number = float | int | None


@dataclass(frozen=True)
class Contender:
    """A version and what it said of its test rows."""

    version: int
    digest: str  # sha256 of the sorted row ids of test
    features: Sequence[str]
    content: str  # sha256 of those rows' features and labels
    said: Scored


@dataclass(frozen=True)
class Candidate:
    """What is known of a version that wants to be the champion."""

    tested: Contender
    objective: Objective
    metrics: Mapping[str, Mapping[str, float]]  # split -> name -> value, as MLflow has them
    gives_probabilities: bool  # so that a calibration error is to be expected
    num_seen: int  # test rows that stand in train, too
    size_mb: float | None  # 10^6 bytes; None: there are no files
    latency_ms: float | None  # of one example; None: it was not loaded
    record: Sequence[str] = ()  # where MLflow and the run disagree
    artifact: str | None = None  # what is wrong with the files; None: nothing
    signature: str | None = None  # what is wrong with the signature; None: nothing
    leaks: Sequence[str] = ()  # columns that give the label away, kept on purpose
    num_duplicates: int = 0  # val or test rows whose features stand in train
    health: Sequence[str] = ()  # members that failed or stood still


@dataclass(frozen=True)
class Verdict:
    """One rule: what was found, what it may be, and whether that will do."""

    rule: str
    value: str
    limit: str
    passed: bool
    why: str = ""  # cause and fix, of a refusal; or what is to be known of a pass


def judge(candidate: Candidate, champion: Contender | None, rules: PromotionSpec) -> list[Verdict]:
    """Every rule's verdict, whatever the others say."""
    return list(_verdicts(candidate, champion, rules))


def refusals(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The rules that were broken."""
    return [verdict for verdict in verdicts if not verdict.passed]


def _verdicts(
    candidate: Candidate, champion: Contender | None, rules: PromotionSpec
) -> Iterator[Verdict]:
    yield _faultless("artifact", candidate.artifact, "as indexed")
    yield _faultless("signature", candidate.signature, "by a trusted key")
    yield _faultless("record", "; ".join(candidate.record) or None, "as the run wrote it")
    yield _metrics(candidate)
    yield _seen(candidate.num_seen)
    yield _test_set(candidate.tested, champion)
    for name, limit in rules.min_metrics.items():
        yield _least(name, candidate.metrics.get("test", {}).get(name), limit)
    if rules.max_gap is not None:
        yield _gap(candidate, rules.max_gap)
    if rules.max_ece is not None and candidate.gives_probabilities:
        ece = candidate.metrics.get("test", {}).get("ece")
        yield _most(
            "max_ece",
            ece,
            rules.max_ece,
            "of test; calibrate it, as with ensemble.calibration=auto, or raise promotion.max_ece",
        )
    yield _better(candidate, champion, rules)
    if rules.max_latency_ms is not None:
        yield _most(
            "max_latency_ms",
            candidate.latency_ms,
            rules.max_latency_ms,
            "for one example; take a smaller model or raise promotion.max_latency_ms",
        )
    if rules.max_size_mb is not None:
        yield _most(
            "max_size_mb",
            candidate.size_mb,
            rules.max_size_mb,
            "of files; take a smaller model or raise promotion.max_size_mb",
        )
    yield from _warnings(candidate, rules)


def _faultless(rule: str, fault: str | None, limit: str) -> Verdict:
    return Verdict(rule, "faulty" if fault else "sound", limit, fault is None, fault or "")


def _metrics(candidate: Candidate) -> Verdict:
    """A metric that is not a number says nothing, and must not pass for one that is good."""
    broken = [
        f"{split}.{name} is {value}"
        for split, values in candidate.metrics.items()
        for name, value in values.items()
        if not math.isfinite(value)
    ]
    name = candidate.objective.metric
    broken += [
        f"{split}.{name} is missing"
        for split in ("val", "test")
        if name not in candidate.metrics.get(split, {})
    ]
    why = f"{'; '.join(broken)}; train and evaluate it again" if broken else ""
    value = f"{len(broken)} not finite or missing"
    return Verdict("metrics", value, "all finite and present", not broken, why)


def _seen(num_seen: int) -> Verdict:
    why = (
        f"{num_seen} test rows stand in train, too, feature by feature with their label: it was "
        "trained on what it is tested on; take them out of train and run it again"
    )
    return Verdict("unseen_test", str(num_seen), "0", not num_seen, why if num_seen else "")


def _test_set(tested: Contender, champion: Contender | None) -> Verdict:
    value = tested.digest[:12]
    if champion is None:
        return Verdict("same_test", value, "any", True, "there is no champion")
    limit = champion.digest[:12]
    if tested.digest != champion.digest:
        why = (
            f"it was tested on other rows than the champion, version {champion.version} (digests "
            f"{value} and {limit}); train it with the champion's data.split, seed and test rows"
        )
    elif tuple(tested.features) == tuple(champion.features) and tested.content != champion.content:
        why = (
            f"its test rows bear the ids of those of the champion, version {champion.version}, "
            "but other features or labels; train it on the champion's data"
        )
    else:
        why = ""
    return Verdict("same_test", value, limit, not why, why)


def _least(name: str, value: Number, limit: float) -> Verdict:
    passed = value is not None and value >= limit  # NaN is not
    why = f"test.{name} is {_shown(value)}, less than promotion.min_metrics.{name}"
    return Verdict(f"min_{name}", _shown(value), f">= {limit:g}", passed, "" if passed else why)


def _most(rule: str, value: Number, limit: float, what: str) -> Verdict:
    passed = value is not None and value <= limit
    why = f"{_shown(value)} {what}"
    return Verdict(rule, _shown(value), f"<= {limit:g}", passed, "" if passed else why)


def _gap(candidate: Candidate, limit: float) -> Verdict:
    """How far test is behind validation, which was looked at to choose."""
    name, mode = candidate.objective.metric, candidate.objective.mode
    val, test = (candidate.metrics.get(split, {}).get(name) for split in ("val", "test"))
    gap = None if val is None or test is None else (val - test if mode == "max" else test - val)
    what = (
        f"is how far test.{name} is behind val.{name}: it was fitted to validation; regularise "
        "it, take more data, or raise promotion.max_gap"
    )
    return _most("max_gap", gap, limit, what)


def _better(candidate: Candidate, champion: Contender | None, rules: PromotionSpec) -> Verdict:
    rule = "better" if rules.must_be_better else "not_worse"
    limit = f"{'>' if rules.must_be_better else '>='} 0 at {100 * rules.confidence:g}%"
    if champion is None:
        return Verdict(rule, "none", limit, True, "there is no champion to compare with")
    try:
        found = margin(
            candidate.tested.said,
            champion.said,
            candidate.objective,
            confidence=rules.confidence,
        )
    except ValueError as error:
        return Verdict(rule, "none", limit, False, f"{error}; see the rule same_test")
    return _compared(rule, limit, found, candidate.objective, champion.version, rules)


def _compared(
    rule: str,
    limit: str,
    found: Margin,
    objective: Objective,
    champion: int,
    rules: PromotionSpec,
) -> Verdict:
    if found.low is None or found.high is None:
        why = f"whether {objective.metric} differs cannot be known of so few independent groups"
        return Verdict(rule, _shown(found.value), limit, False, f"{why}; take a larger test")
    value = f"{found.value:+.4g} ({found.low:+.4g} to {found.high:+.4g})"
    passed = found.low > 0 if rules.must_be_better else found.high >= 0
    why = (
        f"test.{objective.metric} is {value} against that of the champion, version {champion}: "
        f"that is not {limit} confidence; improve the model"
    )
    return Verdict(rule, value, limit, passed, "" if passed else why)


def _warnings(candidate: Candidate, rules: PromotionSpec) -> Iterator[Verdict]:
    duplicates = candidate.num_duplicates
    found = {
        "leaks": [f"{column!r} gives the label away" for column in candidate.leaks],
        "duplicates": [f"{duplicates} rows of val or test equal one of train"] * bool(duplicates),
        "health": list(candidate.health),
    }
    for rule, findings in found.items():
        is_waived = rule in rules.waive
        fix = "waived" if is_waived else f"mend that, or list it in promotion.waive: [{rule}]"
        yield Verdict(
            rule,
            str(len(findings)),
            "told" if is_waived else "0",
            is_waived or not findings,
            f"{'; '.join(findings)}; {fix}" if findings else "",
        )


def _shown(value: Number) -> str:
    return "missing" if value is None else f"{value:.4g}"
