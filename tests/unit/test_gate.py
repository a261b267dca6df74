"""The promotion gate's rules, one by one and together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.gcode_metrics import GcodeLines, Tolerance
from ray_jobs.gcode_predictions import GcodePredictions
from ray_jobs.predictions import Predictions
from ray_jobs.result import Objective
from ray_jobs.tracking.gate import Candidate, Contender, Verdict, judge, refusals
from ray_jobs.tracking.margin import Binary, Decoded, margin
from ray_jobs.tracking.promotion_spec import PromotionSpec

F1, LOG_LOSS = Objective(metric="f1", mode="max"), Objective(metric="log_loss", mode="min")
N, NUM_GROUPS = 300, 30
Y = np.random.default_rng(0).integers(0, 2, N).astype(np.int8)


def said(noise: float, *, seed: int = 1, num_groups: int = NUM_GROUPS) -> Binary:
    """Of N rows, the more wrong the more noise."""
    p = np.clip(Y + np.random.default_rng(seed).normal(0, noise, N), 0, 1).astype(np.float64)
    group = np.arange(N) % num_groups
    return Binary(Predictions(np.arange(N), Y, group, p, {}), 0.5)


GOOD, POOR = said(0.2), said(0.9)
CHAMPION = Contender(1, "d" * 64, ("a", "b"), "c" * 64, POOR)
METRICS = {"val": {"f1": 0.9, "ece": 0.02}, "test": {"f1": 0.88, "ece": 0.03}}
CANDIDATE = Candidate(
    tested=replace(CHAMPION, version=2, said=GOOD),
    objective=F1,
    metrics=METRICS,
    gives_probabilities=True,
    num_seen=0,
    size_mb=3.0,
    latency_ms=2.0,
)


def only_refusal(
    candidate: Candidate, champion: Contender | None = CHAMPION, **rules: object
) -> Verdict:
    (refusal,) = refusals(judge(candidate, champion, PromotionSpec(**rules)))
    return refusal


def test_a_good_candidate_passes_every_rule() -> None:
    for champion in (None, CHAMPION):
        verdicts = judge(CANDIDATE, champion, PromotionSpec())
        assert not refusals(verdicts)
        assert len({verdict.rule for verdict in verdicts}) == len(verdicts) == 14


@pytest.mark.parametrize(
    ("changes", "rule", "why"),
    [
        ({"artifact": "the model's file x is missing"}, "artifact", "the model's file x is miss"),
        ({"signature": "it is not signed"}, "signature", "it is not signed"),
        ({"record": ["test.f1 is not in MLflow"]}, "record", "test.f1 is not in MLflow"),
        ({"num_seen": 3}, "unseen_test", "3 test rows stand in train, too, feature by feature"),
        ({"latency_ms": 1000.5}, "max_latency_ms", "for one example; take a smaller model or"),
        ({"latency_ms": None}, "max_latency_ms", "missing for one example"),
        ({"size_mb": 3000.0}, "max_size_mb", "of files; take a smaller model or raise promotion"),
        ({"leaks": ["label2"]}, "leaks", "'label2' gives the label away; mend that, or list it in"),
        ({"num_duplicates": 5}, "duplicates", "5 rows of val or test equal one of train; mend"),
        ({"health": ["lstm failed: NaN"]}, "health", "lstm failed: NaN; mend that, or list it in"),
    ],
)
def test_each_finding_has_its_own_rule(changes: dict, rule: str, why: str) -> None:
    refusal = only_refusal(replace(CANDIDATE, **changes))
    assert refusal.rule == rule
    assert why in refusal.why


@pytest.mark.parametrize("rule", ["leaks", "duplicates", "health"])
def test_what_is_waived_is_told(rule: str) -> None:
    candidate = replace(CANDIDATE, leaks=["a"], num_duplicates=1, health=["b"])
    verdicts = {v.rule: v for v in judge(candidate, CHAMPION, PromotionSpec(waive=[rule]))}
    assert verdicts[rule].passed
    assert verdicts[rule].why.endswith("; waived")
    assert sum(not v.passed for v in verdicts.values()) == 2


@given(
    split=st.sampled_from(["val", "test"]),
    name=st.sampled_from(["f1", "ece"]),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_metric_that_is_no_number_never_passes(split: str, name: str, value: float) -> None:
    metrics = {**METRICS, split: {**METRICS[split], name: value}}
    found = refusals(judge(replace(CANDIDATE, metrics=metrics), CHAMPION, PromotionSpec()))
    (refusal,) = [verdict for verdict in found if verdict.rule == "metrics"]
    assert f"{split}.{name} is {value}" in refusal.why


def test_the_objective_must_be_there() -> None:
    metrics = {"val": METRICS["val"], "test": {"ece": 0.0}}
    found = refusals(judge(replace(CANDIDATE, metrics=metrics), None, PromotionSpec()))
    assert [verdict.rule for verdict in found] == ["metrics", "max_gap"]
    assert found[0].why == "test.f1 is missing; train and evaluate it again"


def test_least_metrics_are_of_test() -> None:
    assert not refusals(judge(CANDIDATE, None, PromotionSpec(min_metrics={"f1": 0.88})))
    refusal = only_refusal(CANDIDATE, min_metrics={"f1": 0.89})
    assert refusal.rule == "min_f1"
    assert refusal.why == "test.f1 is 0.88, less than promotion.min_metrics.f1"
    assert only_refusal(CANDIDATE, min_metrics={"auc": 0.1}).value == "missing"


@pytest.mark.parametrize(
    ("objective", "val", "test", "passes"),
    [
        (F1, 0.9, 0.81, True),
        (F1, 0.9, 0.79, False),
        (F1, 0.7, 0.95, True),  # test is ahead: nothing was fitted to validation
        (LOG_LOSS, 0.3, 0.39, True),
        (LOG_LOSS, 0.3, 0.41, False),
    ],
)
def test_the_gap_is_how_far_test_is_behind(
    objective: Objective, val: float, test: float, passes: bool
) -> None:
    name = objective.metric
    metrics = {"val": {name: val}, "test": {name: test, "ece": 0.0}}
    candidate = replace(CANDIDATE, objective=objective, metrics=metrics)
    found = [verdict.rule for verdict in refusals(judge(candidate, None, PromotionSpec()))]
    assert found == ([] if passes else ["max_gap"])


def test_calibration_is_asked_of_those_who_give_probabilities() -> None:
    metrics = {"val": {"f1": 0.9}, "test": {"f1": 0.9}}
    candidate = replace(CANDIDATE, metrics=metrics)
    assert only_refusal(candidate).rule == "max_ece"
    assert not refusals(judge(replace(candidate, gives_probabilities=False), None, PromotionSpec()))
    assert not refusals(judge(candidate, None, PromotionSpec(max_ece=None)))
    assert only_refusal(CANDIDATE, max_ece=0.01).rule == "max_ece"


def test_another_test_set_is_refused() -> None:
    other = replace(CANDIDATE, tested=replace(CANDIDATE.tested, digest="e" * 64))
    refusal = only_refusal(other)
    assert refusal.rule == "same_test"
    assert "it was tested on other rows than the champion, version 1 (digests eeee" in refusal.why
    same_ids = replace(CANDIDATE, tested=replace(CANDIDATE.tested, content="e" * 64))
    assert "its test rows bear the ids of those of the champion" in only_refusal(same_ids).why
    # With other columns the content differs by necessity; ids and labels are compared all the same.
    columns = replace(same_ids.tested, features=("a",))
    assert not refusals(judge(replace(same_ids, tested=columns), CHAMPION, PromotionSpec()))


# Better than the champion


@given(seed=st.integers(0, 20))
def test_the_worse_of_two_never_passes(seed: int) -> None:
    worse = replace(CANDIDATE, tested=replace(CANDIDATE.tested, said=said(0.9, seed=seed)))
    refusal = only_refusal(worse, replace(CHAMPION, said=GOOD))
    assert refusal.rule == "better"
    assert "against that of the champion, version 1: that is not > 0 at 95%" in refusal.why
    assert only_refusal(worse, replace(CHAMPION, said=GOOD), must_be_better=False).rule == (
        "not_worse"
    )


def test_better_by_chance_is_not_better() -> None:
    one, other = said(0.6, seed=1), said(0.6, seed=2)
    if margin(one, other, F1, confidence=0.95).value < 0:
        one, other = other, one
    found = margin(one, other, F1, confidence=0.95)
    assert found.low < 0 < found.value < found.high
    candidate = replace(CANDIDATE, tested=replace(CANDIDATE.tested, said=one))
    assert only_refusal(candidate, replace(CHAMPION, said=other)).rule == "better"


def test_the_same_model_again_is_not_better_but_not_worse() -> None:
    champion = replace(CHAMPION, said=GOOD)
    assert only_refusal(CANDIDATE, champion).rule == "better"
    assert not refusals(judge(CANDIDATE, champion, PromotionSpec(must_be_better=False)))


@given(confidence=st.floats(0.5, 0.999))
def test_more_confidence_asks_for_more(confidence: float) -> None:
    found = margin(GOOD, said(0.4), F1, confidence=confidence)
    surest = margin(GOOD, said(0.4), F1, confidence=0.9999)
    assert surest.low <= found.low <= found.high <= surest.high
    assert surest.value == found.value


def test_rows_may_come_in_another_order() -> None:
    rows = POOR.predictions
    order = np.random.default_rng(5).permutation(N)
    turned = Predictions(
        rows.row_id[order], rows.y[order], rows.group[order], rows.ensemble[order], {}
    )
    same = margin(GOOD, Binary(turned, 0.5), F1, confidence=0.95)
    assert same == margin(GOOD, POOR, F1, confidence=0.95)


def test_other_rows_or_labels_cannot_be_compared() -> None:
    rows = POOR.predictions
    for changed in (replace(rows, row_id=rows.row_id + 1), replace(rows, y=1 - rows.y)):
        with pytest.raises(ValueError, match="the two models were not tested on the same rows"):
            margin(GOOD, Binary(changed, 0.5), F1, confidence=0.95)
        found = only_refusal(CANDIDATE, replace(CHAMPION, said=Binary(changed, 0.5)))
        assert found.rule == "better"


def test_one_group_proves_nothing() -> None:
    alone = replace(CANDIDATE, tested=replace(CANDIDATE.tested, said=said(0.2, num_groups=1)))
    assert "cannot be known of so few independent groups; take a larger" in only_refusal(alone).why


def test_groups_and_not_rows_are_drawn() -> None:
    """The same predictions, known to be few independent recordings, are surer of less."""
    few, many = (
        margin(said(0.3, num_groups=n), said(0.6, num_groups=n), F1, confidence=0.95)
        for n in (3, N)
    )
    assert few.value == many.value
    assert few.high - few.low != many.high - many.low


def test_margins_of_lower_is_better_are_turned() -> None:
    found = margin(GOOD, POOR, LOG_LOSS, confidence=0.95)
    assert found.low > 0


def test_margins_of_classes() -> None:
    y = np.arange(N) % 3
    group = np.arange(N) % NUM_GROUPS
    right = np.full((N, 3), 0.1)
    right[np.arange(N), y] = 0.8
    wrong = np.where(np.random.default_rng(0).random((N, 1)) < 0.5, right, np.roll(right, 1, 1))
    classes = ("a", "b", "c")
    one, other = (ClassPredictions(np.arange(N), y, group, p, classes) for p in (right, wrong))
    found = margin(one, other, Objective(metric="macro_f1", mode="max"), confidence=0.95)
    assert 0 < found.low < found.value < found.high
    with pytest.raises(ValueError, match="not tested on the same rows"):
        margin(one, replace(other, classes=("b", "a", "c")), F1, confidence=0.95)


def test_margins_of_gcode_lines() -> None:
    rng = np.random.default_rng(0)
    width = len(PARAMETERS)
    is_set = np.zeros((60, width), bool)
    is_set[:, 0] = True
    values = np.where(is_set, 1.0, np.nan)
    true = GcodeLines(rng.integers(0, 2, 60), is_set, values)
    right = GcodeLines(true.command, is_set, np.where(is_set, 1.0, 0.0))
    wrong = GcodeLines(
        np.where(np.arange(60) % 3 == 0, 1 - true.command, true.command), is_set, right.param_value
    )
    tolerance = Tolerance((0.1,) * width, (0.0,) * width)
    one, other = (
        Decoded(
            GcodePredictions(
                np.arange(60), np.arange(60) % 12, np.array(["x"] * 60), true, lines, ("G0", "G1")
            ),
            tolerance,
        )
        for lines in (right, wrong)
    )
    objective = Objective(metric="composite_acc", mode="max")
    found = margin(one, other, objective, confidence=0.95)
    assert found.value == pytest.approx(1 / 3)
    assert found.low > 0
    with pytest.raises(ValueError, match="not tested on the same rows"):
        margin(one, GOOD, objective, confidence=0.95)


# The section


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 1.0},
        {"confidence": 0.4},
        {"max_gap": -0.1},
        {"max_ece": 1.1},
        {"max_latency_ms": 0},
        {"min_metrics": {"f1": math.nan}},
        {"waive": ["signature"]},
        {"min_f1": 0.9},
    ],
)
def test_rules_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        PromotionSpec(**wrong)
