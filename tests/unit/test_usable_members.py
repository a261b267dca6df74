"""Which members an ensemble may use: by the type of their results, never by guess."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.ensembling.members import ensemble_members, usable_members
from ray_jobs.errors import JobFailed
from ray_jobs.result import MemberResult, Objective, parse_member_result

Y = np.tile([0, 1], 30)
P = np.where(Y == 1, 0.7, 0.2) + np.linspace(0, 0.2, 60)


def result(name, status="SUCCEEDED", **metrics):
    values = {"f1": 0.8, "accuracy": 0.9} | metrics
    val = {key: {"value": value} for key, value in values.items() if value is not None}
    return MemberResult(name=name, family="any", status=status, metrics={"val": val})


def combine(results, predictions, strategy="exponential"):
    return ensemble_members(
        results,
        predictions,
        Y,
        np.arange(60),
        strategy=strategy,
        calibration="none",
        objective=Objective(metric="f1", mode="max"),
        seed=0,
    )


def test_a_member_is_judged_by_its_result():
    malformed = '{"name": "torn", "family": "any", "status": "SUCCEEDED", "metrics": {"val": {"f1"'
    infinite = (
        '{"name": "infinite", "family": "any", "status": "SUCCEEDED",'
        ' "metrics": {"val": {"f1": {"value": "Infinity"}}}}'
    )
    results = [
        result("good"),
        result("silent", f1=None),
        result("bare", accuracy=None),
        result("huge", f1=1.2),
        result("negative", accuracy=-0.1),
        result("late", status="RUNNING"),
        MemberResult(name="failed", family="any", status="FAILED", reason="out of memory"),
        parse_member_result(malformed, name="torn", family="any"),
        parse_member_result(infinite, name="infinite", family="any"),
        result("fine", f1=0.0, accuracy=1.0),
    ]
    usable, excluded = usable_members(results)
    assert usable == ["good", "fine"]
    assert excluded.pop("torn").startswith("malformed result: document: Invalid JSON")
    assert excluded.pop("infinite").startswith("malformed result: metrics.val.f1.value: ")
    assert excluded == {
        "silent": "its result has no validation f1",
        "bare": "its result has no validation accuracy",
        "huge": "its validation f1 is 1.2, not within 0..1",
        "negative": "its validation accuracy is -0.1, not within 0..1",
        "late": "its status is RUNNING",
        "failed": "out of memory",
    }


def test_two_results_of_one_name_are_refused():
    with pytest.raises(ValueError, match="there are several results named 'a'"):
        usable_members([result("a"), result("a")])


@pytest.mark.parametrize(
    ("predictions", "reason"),
    [
        (None, "it has no validation predictions"),
        (P[:-1], "its validation predictions cannot be used: y and p must be [N] of one length, "),
        (np.full(60, np.nan), "its validation predictions cannot be used: p must be finite"),
        (P + 1, "its validation predictions cannot be used: p must be finite and between 0 and 1"),
        (np.full(60, "0.5"), "its validation predictions are not numbers"),
    ],
)
def test_a_member_is_judged_by_its_predictions(predictions, reason):
    given = {"a": P, "b": P}
    if predictions is not None:
        given["c"] = predictions
    ensemble, excluded = combine([result("a"), result("b"), result("c")], given)
    assert ensemble.weights == {"a": 0.5, "b": 0.5}
    assert ensemble.strategy == "exponential"
    assert list(excluded) == ["c"]
    assert excluded["c"].startswith(reason)


def test_an_unusable_member_has_no_vote():
    ensemble, excluded = combine([result("a"), result("b", f1=None)], {"a": P, "b": P, "stray": P})
    assert ensemble.weights == {"a": 1.0}
    assert excluded == {"b": "its result has no validation f1"}


def test_with_no_usable_metrics_whatever_predicts_has_equal_weight():
    results = [result("a", f1=None), result("b", f1=7), result("c", f1=None)]
    ensemble, excluded = combine(results, {"b": P, "a": P, "c": P + 1}, strategy="auto")
    assert ensemble.strategy == "equal"
    assert ensemble.weights == {"a": 0.5, "b": 0.5}
    assert ensemble.notes[0] == "no member has usable metrics: equal weights over a, b"
    assert set(excluded) == {"a", "b", "c"}


def test_with_no_predictions_the_job_fails():
    with pytest.raises(
        JobFailed,
        match=r"^no member can be used \(a: it has no validation predictions; b: its status is",
    ):
        combine([result("b", status="FAILED"), result("a")], {})
    with pytest.raises(JobFailed, match=r"^no member can be used \(there are none\)$"):
        combine([], {})
