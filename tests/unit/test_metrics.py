"""Metrics against scikit-learn, intervals against a loop that really resamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ray_jobs import bootstrap, metrics
from ray_jobs.metrics import (
    EPSILON,
    best_threshold,
    binary_metrics,
    bootstrap_intervals,
    objective_value,
)

# Few distinct scores make ties; 0 and 1 are among them.
SCORES = st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.5, 0.5 + 2**-53, 0.75, 0.9, 1.0])
ROWS = st.lists(
    st.tuples(st.integers(0, 1), SCORES | st.floats(0, 1)), min_size=1, max_size=40
).map(lambda rows: (np.array([y for y, _ in rows]), np.array([p for _, p in rows])))


def simulate(num_rows, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, num_rows)
    y = (rng.random(num_rows) < 1 / (1 + np.exp(-slope * z))).astype(int)
    return y, 1 / (1 + np.exp(-z))


def reference(y, p, threshold):
    """What scikit-learn says, without what it would make up for an undefined metric."""
    called = p >= threshold
    expected = {
        "accuracy": sk.accuracy_score(y, called),
        "log_loss": sk.log_loss(y, np.clip(p, EPSILON, 1 - EPSILON), labels=[0, 1]),
    }
    if y.any() or called.any():
        expected["f1"] = sk.f1_score(y, called, zero_division=0)
    if called.any():
        expected["precision"] = sk.precision_score(y, called)
    if y.any():
        expected["recall"] = sk.recall_score(y, called)
    if 0 < y.sum() < len(y):
        expected["auc"] = sk.roc_auc_score(y, p)
    return expected


@given(ROWS, SCORES)
def test_metrics_are_those_of_scikit_learn_and_the_undefined_are_absent(rows, threshold):
    y, p = rows
    measured = binary_metrics(y, p, threshold)
    assert measured.pop("ece") <= 1
    assert measured == pytest.approx(reference(y, p, threshold), abs=1e-9)


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_rows():
    p = np.array([0.01, 0.03, 0.50, 0.52, 1.0])
    y = np.array([0, 1, 1, 1, 1])
    # bins [0, 1/15): mean p 0.02, share 0.5; [7/15, 8/15): 0.51 against 1; the last: 1 against 1
    assert binary_metrics(y, p, 0.5)["ece"] == pytest.approx(0.4 * 0.48 + 0.4 * 0.49)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [0.5], r"y and p must be \[N\] of one length, but are \(2,\) and \(1,\)"),
        ([[0, 1]], [[0.5, 0.5]], r"must be \[N\] of one length"),
        ([], [], "there are no rows to measure"),
        ([0, 2], [0.5, 0.5], "y must hold 0 and 1 only"),
        ([0, 1], [0.5, np.nan], "p must be finite and between 0 and 1"),
        ([0, 1], [0.5, 1.0000001], "p must be finite and between 0 and 1"),
    ],
)
def test_bad_input_is_refused(y, p, message):
    for call in (
        lambda: binary_metrics(y, p, 0.5),
        lambda: bootstrap_intervals(y, p, 0.5),
        lambda: best_threshold(y, p, "f1"),
        lambda: objective_value(y, p, "auc"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("num_groups", [None, 7])
def test_intervals_are_the_percentiles_of_a_loop_that_repeats_rows(num_groups):
    y, p = simulate(60)
    p = np.round(p, 1)
    groups = np.arange(60) if num_groups is None else np.arange(60) % num_groups
    table = metrics._Table(y.astype(np.int8), p, 0.5, groups)
    draws: dict[str, list[float]] = {}
    for counts in np.concatenate(
        list(bootstrap.group_resamples(table.num_groups, 200, 3, row_cells=60))
    ).astype(int):
        assert counts.sum() == groups.max() + 1
        rows = np.repeat(np.arange(60), counts[groups])
        for name, value in binary_metrics(y[rows], p[rows], 0.5).items():
            draws.setdefault(name, []).append(value)
    measured = bootstrap_intervals(
        y, p, 0.5, groups=None if num_groups is None else groups, num_resamples=200, seed=3
    )
    estimates = binary_metrics(y, p, 0.5)
    assert measured.keys() == estimates.keys()
    for name, metric in measured.items():
        assert metric.value == pytest.approx(estimates[name])
        if name != "ece":
            expected = np.quantile(draws[name], [0.025, 0.975])
            assert [metric.low, metric.high] == pytest.approx(expected)


def test_a_chunk_is_no_boundary(monkeypatch):
    y, p = simulate(50)
    whole = bootstrap_intervals(y, p, 0.5, num_resamples=100)
    monkeypatch.setattr(bootstrap, "_CELLS_PER_CHUNK", 50 * 7)
    chunked = bootstrap_intervals(y, p, 0.5, num_resamples=100)
    for name, metric in whole.items():
        assert [chunked[name].low, chunked[name].high] == pytest.approx([metric.low, metric.high])


def test_rows_of_a_group_count_once():
    y, p = simulate(80)
    once = bootstrap_intervals(y, p, 0.5)
    repeated, scores, groups = np.repeat(y, 10), np.repeat(p, 10), np.repeat(np.arange(80), 10)
    grouped = bootstrap_intervals(repeated, scores, 0.5, groups=groups)
    naive = bootstrap_intervals(repeated, scores, 0.5)
    for name, metric in once.items():
        assert grouped[name].low == pytest.approx(metric.low, abs=1e-9)
        assert grouped[name].high == pytest.approx(metric.high, abs=1e-9)
        width = metric.high - metric.low
        assert naive[name].high - naive[name].low < 0.6 * width, name


def test_names_of_groups_do_not_matter():
    y, p = simulate(60)
    numbered = bootstrap_intervals(y, p, 0.5, groups=np.arange(60) // 6)
    named = bootstrap_intervals(y, p, 0.5, groups=[f"run-{i // 6}" for i in range(60)])
    assert numbered == named
    with pytest.raises(ValueError, match=r"groups must be \[60\] as y, but is \(59,\)"):
        bootstrap_intervals(y, p, 0.5, groups=np.arange(59))


def test_one_group_has_values_and_no_intervals():
    y, p = simulate(60)
    measured = bootstrap_intervals(y, p, 0.5, groups=np.zeros(60))
    assert {name: m.value for name, m in measured.items()} == binary_metrics(y, p, 0.5)
    assert all(m.low is None and m.high is None for m in measured.values())


def test_a_metric_undefined_in_many_resamples_has_no_interval():
    y, p = np.r_[1, np.zeros(29, int)], np.r_[0.5, np.linspace(0.9, 0.1, 29)]
    measured = bootstrap_intervals(y, p, 0.5)  # a third of the resamples lack the one positive
    assert measured["auc"].value == pytest.approx(0.5, abs=0.05)
    assert measured["auc"].low is None
    assert measured["recall"].low is None
    assert measured["accuracy"].low is not None
    # Of four positives, one in 65 resamples has none: few enough to be left out.
    rare = bootstrap_intervals(np.r_[1, 1, 1, y], np.r_[0.3, 0.6, 0.7, p], 0.5)["auc"]
    assert rare.low < rare.value < rare.high


def test_no_error_seen_is_not_certainty():
    y = np.tile([0, 1], 20)
    measured = bootstrap_intervals(y, np.where(y == 1, 0.9, 0.1), 0.5)
    assert measured["accuracy"].value == 1
    assert measured["accuracy"].high is None


def test_the_seed_decides():
    y, p = simulate(100)
    assert bootstrap_intervals(y, p, 0.5, seed=1) == bootstrap_intervals(y, p, 0.5, seed=1)
    assert bootstrap_intervals(y, p, 0.5, seed=1) != bootstrap_intervals(y, p, 0.5, seed=2)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = binary_metrics(*simulate(400_000, seed=99, slope=1.3), 0.5)
    held = dict.fromkeys(truth, 0)
    for seed in range(100):
        measured = bootstrap_intervals(*simulate(400, seed, slope=1.3), 0.5, num_resamples=200)
        for name in truth:
            held[name] += measured[name].low <= truth[name] <= measured[name].high
    # 95 of 100 are due; 87 or fewer have a chance below 0.2 %
    assert all(count > 87 for count in held.values()), held


def test_a_calibrated_classifier_may_have_no_calibration_error():
    for seed in range(10):
        ece = bootstrap_intervals(*simulate(500, seed), 0.5, num_resamples=200)["ece"]
        assert 0 <= ece.low <= ece.value <= ece.high
    assert sum(
        bootstrap_intervals(*simulate(500, seed), 0.5, num_resamples=200)["ece"].low == 0
        for seed in range(10)
    ) >= 8  # fmt: skip


@given(ROWS, st.sampled_from(["f1", "accuracy"]))
def test_no_threshold_is_better_than_the_best(rows, metric):
    y, p = rows
    if metric == "f1" and not y.any():
        return
    threshold = best_threshold(y, p, metric)
    best = binary_metrics(y, p, threshold)[metric]
    for other in [*np.unique(p), 1.5]:
        assert best >= binary_metrics(y, p, other).get(metric, 0)
    assert objective_value(y, p, metric) == pytest.approx(best)


def test_the_threshold_lies_midway_between_scores():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.8], "f1") == pytest.approx(0.4)
    assert best_threshold([1, 1], [0.4, 0.6], "accuracy") == pytest.approx(0.2)
    assert best_threshold([0, 0], [0.4, 0.6], "accuracy") == pytest.approx(0.8)
    assert best_threshold([0, 0], [0.4, 1.0], "accuracy") > 1
    assert best_threshold([0, 1], [0.4, 0.6], "auc") == best_threshold([0, 1], [0.4, 0.6], "f1")


@settings(max_examples=50)
@given(ROWS)
def test_objectives_without_threshold_are_the_metrics(rows):
    y, p = rows
    measured = binary_metrics(y, p, 0.5)
    assert objective_value(y, p, "log_loss") == pytest.approx(measured["log_loss"])
    if "auc" in measured:
        assert objective_value(y, p, "auc") == pytest.approx(measured["auc"])
    else:
        with pytest.raises(ValueError, match="auc needs rows of both classes"):
            objective_value(y, p, "auc")


def test_an_objective_must_exist_and_be_defined():
    with pytest.raises(ValueError, match="'recall' is not an objective; there is f1, accuracy"):
        objective_value([0, 1], [0.1, 0.9], "recall")
    with pytest.raises(ValueError, match="f1 needs at least one positive row"):
        best_threshold([0, 0], [0.1, 0.9], "f1")
