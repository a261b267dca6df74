"""The verdict of a run: table-driven, word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from report_run import make_predictions, make_result

from ray_jobs.metrics import binary_metrics
from ray_jobs.reporting.scores import no_skill
from ray_jobs.reporting.verdict import Finding, assess
from ray_jobs.result import (
    ColumnLeak,
    DuplicateReport,
    JobResult,
    LeakageReport,
    MetricValue,
    SplitSummary,
)


@pytest.fixture(scope="module")
def result() -> JobResult:
    return make_result({"val": make_predictions(seed=1), "test": make_predictions(seed=2)})


def with_test(result: JobResult, metric: str, value: float, low: float, high: float) -> JobResult:
    score = MetricValue(value=value, low=low, high=high)
    test = {**result.metrics["test"], metric: score}
    return result.model_copy(update={"metrics": {**result.metrics, "test": test}})


def findings_of(result: JobResult) -> list[Finding]:
    quiet = [m for m in result.members if m.status == "SUCCEEDED" and not m.degenerate]
    leakage = LeakageReport() if result.data is None else result.data.leakage
    if leakage.columns and leakage.columns[0].column == "co2":
        leakage = LeakageReport()
    data = result.data.model_copy(update={"leakage": leakage})
    return assess(result.model_copy(update={"members": quiet, "data": data})).findings


@pytest.fixture
def calm(result: JobResult) -> JobResult:
    """A run that nothing is to be said against: the same narrow scores on validation and test."""
    scores = {"f1": MetricValue(value=0.8, low=0.78, high=0.82)}
    scores["auc"] = MetricValue(value=0.9, low=0.88, high=0.92)
    return result.model_copy(update={"metrics": {"val": scores, "test": scores}})


def test_calm_run_has_nothing_said_against_it(calm: JobResult) -> None:
    assert findings_of(calm) == []


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "level", "text"),
    [
        ("f1", 0.7, 0.68, 0.72, "warning", "F1 is worse on test (0.700) than on validation (0.800) "
         "by more than chance explains: expect the test score."),
        ("f1", 0.9, 0.88, 0.92, "warning", "F1 is better on test (0.900) than on validation "
         "(0.800) by more than chance explains: the splits may differ in kind."),
        ("f1", 0.8, 0.7, 0.9, "warning", "The interval of F1 on test is 0.200 wide (0.700–0.900): "
         "more test rows, or groups of them, would say more."),
        ("auc", 0.51, 0.48, 0.54, "warning", "AUC on test, 0.510 (0.480–0.540), is not beyond what "
         "no skill scores: 0.500."),
    ],
)  # fmt: skip
def test_doubtful_score_is_doubted(
    calm: JobResult, metric: str, value: float, low: float, high: float, level: Any, text: str
) -> None:
    assert findings_of(with_test(calm, metric, value, low, high)) == [Finding(level, text)]


def test_gap_within_chance_is_no_warning(calm: JobResult) -> None:
    shifted = with_test(calm, "f1", 0.775, 0.755, 0.795)  # 0.025 < sqrt(0.02^2 + 0.02^2)
    assert findings_of(shifted) == []
    assert "Test is 0.025 below validation (0.800), which chance can explain." in " ".join(
        assess(shifted).details
    )


@pytest.mark.parametrize(
    ("ceiling", "level", "text"),
    [
        (0.91, "note", "Ceiling AUC 0.910; reached 0.900."),
        (0.885, "note", "Ceiling AUC 0.885; reached 0.900."),  # above, within the interval
        (0.87, "fault", "AUC 0.900 (0.880–0.920) is better than its ceiling 0.870, the score of "
         "the true probability: the evaluation is at fault."),
    ],
)  # fmt: skip
def test_known_ceiling(calm: JobResult, ceiling: float, level: Any, text: str) -> None:
    data = calm.data.model_copy(update={"ceiling": {"test": {"auc": ceiling}}})
    known = calm.model_copy(update={"data": data})
    assert findings_of(known) == [Finding(level, text)]


def test_score_above_its_ceiling_without_an_interval_proves_nothing(calm: JobResult) -> None:
    data = calm.data.model_copy(update={"ceiling": {"test": {"auc": 0.87}}})
    scores = {**calm.metrics["test"], "auc": MetricValue(value=0.9)}
    known = calm.model_copy(update={"data": data, "metrics": {"test": scores}})
    assert findings_of(known) == [Finding("note", "Ceiling AUC 0.870; reached 0.900.")]


def test_no_skill_is_said_in_the_headline(calm: JobResult) -> None:
    baseline = no_skill("f1", calm)
    guess = with_test(calm, "f1", baseline + 0.01, baseline - 0.01, baseline + 0.03)
    verdict = assess(guess)
    assert verdict.level == "caution"
    assert verdict.headline == (
        f"It is not shown to be better than no skill: F1 {baseline + 0.01:.3f} on test, where an "
        f"answer that never looks at the features scores {baseline:.3f}."
    )


def test_no_skill_scores_are_those_of_constant_answers(result: JobResult) -> None:
    y = np.repeat([0, 1], [700, 300])
    split = SplitSummary(num_rows=1000, num_groups=1, num_positive=300, digest="")
    data = result.data.model_copy(update={"splits": {"test": split}})
    known = result.model_copy(update={"data": data})
    always = binary_metrics(y, np.full(1000, 0.3), threshold=0.0)
    never = binary_metrics(y, np.full(1000, 0.3), threshold=1.0)
    assert no_skill("f1", known) == pytest.approx(always["f1"])
    assert no_skill("accuracy", known) == pytest.approx(never["accuracy"])
    assert no_skill("auc", known) == pytest.approx(always["auc"])
    assert no_skill("log_loss", known) == pytest.approx(always["log_loss"])
    assert no_skill("recall", known) is None


def test_kept_column_that_is_the_label_is_a_warning(calm: JobResult) -> None:
    leak = ColumnLeak(column="alarm", auc=0.998, refused=False, evidence="a tree")
    repeats = DuplicateReport(num_across_splits=7)
    measured = [
        ColumnLeak(column=name, auc=0.9, refused=False, evidence="a tree") for name in "abcd"
    ]
    leakage = LeakageReport(columns=[leak, *measured], duplicates=repeats)
    data = calm.data.model_copy(update={"leakage": leakage})
    assert findings_of(calm.model_copy(update={"data": data})) == [
        Finding(
            "warning",
            "Column alarm alone reaches AUC 0.998 and was kept: it may give the label away.",
        ),
        Finding(
            "note",
            "a alone reaches AUC 0.900; b alone reaches AUC 0.900; c alone reaches AUC 0.900; "
            "1 column more.",
        ),
        Finding("warning", "7 rows of validation or test stand in train as well."),
    ]


def test_single_member_is_named(calm: JobResult) -> None:
    alone = {"strategy": "single:random_forest", "weights": {"random_forest": 1.0}}
    verdict = assess(calm.model_copy(update={"ensemble": calm.ensemble.model_copy(update=alone)}))
    assert verdict.headline == (
        "random_forest predicts fire with F1 0.800 on 40 groups it has never seen."
    )
    assert "Chosen on validation: random_forest alone." in verdict.details


def test_run_under_way_with_a_score_gets_its_verdict(calm: JobResult) -> None:
    verdict = assess(calm.model_copy(update={"status": "RUNNING"}))
    assert verdict.headline.startswith("The ensemble predicts fire with F1 0.800")
    assert verdict.label.startswith("Running")
    assert verdict.details[-1] == "The run has not ended."
