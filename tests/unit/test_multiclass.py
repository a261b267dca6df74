"""Metrics of many classes against scikit-learn, intervals against a loop that really resamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from ray_jobs import bootstrap
from ray_jobs.metrics import EPSILON
from ray_jobs.multiclass import (
    OBJECTIVES,
    bootstrap_intervals,
    class_scores,
    confusion_matrix,
    multiclass_metrics,
    objective_value,
    worst_classes,
)
from ray_jobs.result import ClassScores


@st.composite
def rows(draw):
    """Labels and probabilities, with ties, zeros and classes that stand in no row."""
    num_classes, num_rows = draw(st.integers(2, 7)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.integers(0, draw(st.sampled_from([3, 50])), (num_rows, num_classes)) + 0.0
    weights[weights.sum(axis=1) == 0] = 1
    present = rng.permutation(num_classes)[: draw(st.integers(1, num_classes))]
    return rng.choice(present, num_rows), weights / weights.sum(axis=1, keepdims=True)


def simulate(num_rows, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(num_classes, 0.4), num_rows)
    y = (rng.random(num_rows)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    return np.minimum(y, num_classes - 1), p


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of classes that are named but not there
@given(rows())
def test_metrics_are_those_of_scikit_learn(split):
    y, p = split
    named, num_classes = p.argmax(axis=1), p.shape[1]
    measured = multiclass_metrics(y, p)
    assert 0 <= measured.pop("ece") <= 1
    expected = {
        "accuracy": sk.accuracy_score(y, named),
        "balanced_accuracy": sk.balanced_accuracy_score(y, named),
        "macro_f1": sk.f1_score(y, named, labels=np.unique(y), average="macro", zero_division=0),
        "log_loss": sk.log_loss(
            np.eye(2)[:1].repeat(len(y), axis=0)[:, 0],
            np.column_stack([1 - (q := np.clip(p[np.arange(len(y)), y], EPSILON, 1 - EPSILON)), q]),
            labels=[0, 1],
        ),
    }
    if num_classes > 3:
        # Of equally likely classes the first is taken; scikit-learn takes the last.
        expected["top3_accuracy"] = sk.top_k_accuracy_score(
            num_classes - 1 - y, p[:, ::-1], k=3, labels=range(num_classes)
        )
    assert measured == pytest.approx(expected, abs=1e-9)


def test_log_loss_is_that_of_scikit_learn_where_nothing_is_clipped():
    y, p = simulate(200)
    p = 0.9 * p + 0.02
    assert multiclass_metrics(y, p)["log_loss"] == pytest.approx(sk.log_loss(y, p))


@given(rows())
def test_scores_of_classes_are_those_of_scikit_learn_and_the_undefined_are_absent(split):
    y, p = split
    named, names = p.argmax(axis=1), [f"c{i}" for i in range(p.shape[1])]
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        y, named, labels=range(len(names)), zero_division=0
    )
    for i, entry in enumerate(class_scores(y, p, names)):
        assert (entry.name, entry.support) == (names[i], support[i])
        assert entry.precision == (pytest.approx(precision[i]) if i in named else None)
        assert entry.recall == (pytest.approx(recall[i]) if i in y else None)
        assert entry.f1 == (pytest.approx(f1[i]) if i in y else None)
    np.testing.assert_array_equal(
        confusion_matrix(y, p), sk.confusion_matrix(y, named, labels=range(len(names)))
    )


def test_class_never_named_counts_as_zero_and_one_without_rows_not_at_all():
    y = np.array([0, 0, 1])
    p = np.array([[0.9, 0.0, 0.1], [0.2, 0.1, 0.7], [0.8, 0.1, 0.1]])
    # named 0, 2, 0: F1 of class 0 is 2/4, of class 1 is 0; class 2 has no row
    assert multiclass_metrics(y, p)["macro_f1"] == pytest.approx(0.25)
    assert class_scores(y, p, ["a", "b", "c"]) == [
        ClassScores(name="a", support=2, precision=0.5, recall=0.5, f1=0.5),
        ClassScores(name="b", support=1, recall=0.0, f1=0.0),
        ClassScores(name="c", support=0, precision=0.0),
    ]


def test_calibration_error_is_the_gap_of_each_bin_of_confidence():
    p = np.array([[0.5, 0.3, 0.2], [0.52, 0.4, 0.08], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
    y = np.array([0, 1, 1, 2])
    # [7/15, 8/15): confidence 0.51, half right; 0.9 and 1.0 lie in bins 13 and 14, both right
    expected = 0.5 * abs(0.51 - 0.5) + 0.25 * 0.1 + 0.25 * 0
    assert multiclass_metrics(y, p)["ece"] == pytest.approx(expected)


def test_top_three_needs_more_than_three_classes():
    assert "top3_accuracy" not in multiclass_metrics(*simulate(20, num_classes=3))
    tied = np.full((4, 4), 0.25)
    assert multiclass_metrics(np.arange(4), tied)["top3_accuracy"] == 0.75


@pytest.mark.parametrize("metric", OBJECTIVES)
def test_objective_is_one_of_the_metrics(metric):
    y, p = simulate(50)
    assert objective_value(y, p, metric) == multiclass_metrics(y, p)[metric]


def test_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="'auc' is not an objective; there is macro_f1, accuracy,"):
        objective_value(*simulate(5), "auc")


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0], [0.5], r"y must be \[N\] and p \[N, C\] of one length, but are \(1,\) and \(1,\)"),
        ([0, 1], [[0.5, 0.5]], r"of one length, but are \(2,\) and \(1, 2\)"),
        ([], np.zeros((0, 2)), "there are no rows to measure"),
        ([0], [[1.0]], "p must have two classes or more, but has 1"),
        ([2], [[0.5, 0.5]], "y must be between 0 and 1, as p has 2 classes"),
        ([0.0], [[0.5, 0.5]], "y must hold whole numbers, but is float64"),
        ([0], [[np.nan, 0.5]], "p must be finite and between 0 and 1"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], "must sum to 1, but row 1 sums to 1.1"),
    ],
)
def test_bad_input_is_refused(y, p, message):
    for call in (multiclass_metrics, bootstrap_intervals, confusion_matrix):
        with pytest.raises(ValueError, match=message):
            call(y, p)


def test_number_of_names_must_be_that_of_the_classes():
    with pytest.raises(ValueError, match="p has 5 classes, but 2 are named"):
        class_scores(*simulate(5), ["a", "b"])


def test_intervals_are_those_of_a_loop_that_resamples_whole_groups():
    y, p = simulate(120, seed=3)
    groups = np.random.default_rng(1).integers(0, 25, 120) * 7
    measured = bootstrap_intervals(y, p, groups=groups, num_resamples=200, seed=5)
    names = np.unique(groups)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(200):
        drawn = names[rng.integers(len(names), size=len(names))]
        index = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        draws.append(multiclass_metrics(y[index], p[index]))
    estimates = multiclass_metrics(y, p)
    for name in set(estimates) - {"ece"}:
        low, high = np.quantile([draw[name] for draw in draws], [0.025, 0.975])
        found = measured[name]
        assert (found.value, found.low, found.high) == pytest.approx((estimates[name], low, high))


def test_intervals_do_not_depend_on_how_the_resamples_are_chunked(monkeypatch):
    y, p = simulate(60)
    whole = bootstrap_intervals(y, p, num_resamples=64)
    monkeypatch.setattr(bootstrap, "_CELLS_PER_CHUNK", 5 * 60)
    parts = bootstrap_intervals(y, p, num_resamples=64)
    for name, value in whole.items():
        assert parts[name].model_dump() == pytest.approx(value.model_dump())


def test_groups_that_repeat_rows_widen_the_intervals():
    y, p = simulate(50)
    repeats, groups = np.tile(np.arange(50), 8), np.tile(np.arange(50), 8)
    rows = bootstrap_intervals(y[repeats], p[repeats])["accuracy"]
    grouped = bootstrap_intervals(y[repeats], p[repeats], groups=groups)["accuracy"]
    assert grouped.high - grouped.low > 2 * (rows.high - rows.low)


def test_one_group_has_no_intervals():
    y, p = simulate(30)
    for value in bootstrap_intervals(y, p, groups=np.zeros(30)).values():
        assert (value.low, value.high) == (None, None)


def test_metric_without_an_error_has_no_interval():
    y = np.arange(30) % 3
    measured = bootstrap_intervals(y, 0.9 * np.eye(3)[y] + 0.1 / 3)
    assert (measured["accuracy"].value, measured["accuracy"].low) == (1.0, None)
    assert (measured["macro_f1"].value, measured["macro_f1"].low) == (1.0, None)


def test_interval_of_the_calibration_error_holds_zero_for_a_calibrated_model():
    y, p = simulate(3000)
    found = bootstrap_intervals(y, p, num_resamples=200)["ece"]
    assert found.low < 0.005
    assert found.low <= found.value <= found.high


def test_worst_classes_are_those_of_the_lowest_f1_then_of_the_most_rows():
    entries = [
        ClassScores(name="good", support=5, f1=0.9),
        ClassScores(name="rare", support=2, f1=0.0),
        ClassScores(name="absent", support=0),
        ClassScores(name="common", support=9, f1=0.0),
        ClassScores(name="fair", support=5, f1=0.5),
    ]
    assert [entry.name for entry in worst_classes(entries, 3)] == ["common", "rare", "fair"]
    assert len(worst_classes(entries)) == 4
