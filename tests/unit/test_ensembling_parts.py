"""The parts of an ensemble, each against scikit-learn or its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ray_jobs.ensembling.blend import Blend
from ray_jobs.ensembling.calibration import choose_calibration, fit_calibration
from ray_jobs.ensembling.comparison import Score, exceeds, simplest_near_best
from ray_jobs.ensembling.folds import make_folds
from ray_jobs.ensembling.logistic import expit, fit_logistic, logit
from ray_jobs.ensembling.selection import _select, greedy_weights
from ray_jobs.ensembling.stacking import stack
from ray_jobs.ensembling.validation import Validation
from ray_jobs.ensembling.weights import best_member, exponential_weights, member_scores
from ray_jobs.metrics import binary_metrics, bootstrap_intervals, log_losses
from ray_jobs.result import Objective

F1 = Objective(metric="f1", mode="max")


def simulate(num_rows, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, num_rows)
    return (rng.random(num_rows) < expit(slope * z)).astype(np.int8), z


# Exponential weights


@given(st.lists(st.floats(0, 1), min_size=1, max_size=120))
def test_exponential_weights_keep_their_bounds(scores):
    weights = exponential_weights(scores)
    assert weights.sum() == pytest.approx(1)
    if 2 <= len(scores) <= 100:
        assert weights.min() >= 0.01
        assert weights.max() <= 0.5
        free = (weights > 0.01 + 1e-9) & (weights < 0.5 - 1e-9)
        ratios = weights[free] / np.exp(5 * np.array(scores))[free]
        assert ratios == pytest.approx(ratios[:1].repeat(len(ratios)))
    order = np.argsort(scores)
    assert (np.diff(weights[order]) >= -1e-12).all()


def test_exponential_weights_by_hand():
    assert exponential_weights([0.7]) == pytest.approx([1])
    assert exponential_weights([0.9, 0.1]) == pytest.approx([0.5, 0.5])
    raw = np.exp(5 * np.array([0.8, 0.75, 0.7]))
    assert exponential_weights([0.8, 0.75, 0.7]) == pytest.approx(raw / raw.sum())
    capped = exponential_weights([1.0, 0.5, 0.5, 0.0])
    assert capped[0] == 0.5
    assert capped[1] / capped[3] == pytest.approx(np.exp(2.5))


def test_a_members_score_weighs_f1_and_accuracy():
    y, z = simulate(300)
    validation = Validation.of({"a": expit(z), "b": expit(-z)}, y, np.arange(300))
    expected = []
    for p in validation.predictions.values():
        cuts = [binary_metrics(y, p, t) for t in np.unique(p)]
        best = max(cuts, key=lambda metrics: metrics.get("f1", 0))
        expected.append(0.6 * best["f1"] + 0.4 * best["accuracy"])
    assert member_scores(validation, F1) == pytest.approx(expected)
    assert best_member(validation, F1) == "a"


def test_of_equal_members_the_one_with_less_log_loss_is_best():
    y, z = simulate(300)
    validation = Validation.of({"a": expit(9 * z), "b": expit(z), "c": expit(z)}, y, np.arange(300))
    assert best_member(validation, F1) == "b"


# Greedy selection


def test_greedy_finds_the_mixture_of_least_log_loss():
    y, z = simulate(4000)
    rng = np.random.default_rng(1)
    members = np.stack([expit(z + rng.normal(0, noise, 4000)) for noise in (0.5, 0.5, 1.0, 4.0)])
    weights = greedy_weights(members, y, np.arange(4000), seed=0)
    assert weights.sum() == pytest.approx(1)
    loss = log_losses(y, weights @ members).mean()
    grid = [np.array(w) for w in np.ndindex(11, 11, 11) if sum(w) <= 10]
    grid = [np.r_[w, 10 - w.sum()] / 10 for w in grid]
    assert loss < min(log_losses(y, w @ members).mean() for w in grid) + 5e-4


def test_greedy_keeps_the_best_average_on_its_way():
    # By symmetry a third each is best, which three picks can reach and twenty cannot.
    likelihood = np.array([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [0.5, 0.1, 0.9]])
    assert _select(likelihood) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_greedy_takes_whole_clusters():
    # Within each cluster one member is right; a bag of half the clusters cannot know of the others.
    y = np.tile([0, 1], 20).astype(np.int8)
    clusters = np.repeat([0, 1], 20)
    right, wrong = np.where(y == 1, 0.9, 0.1), np.where(y == 1, 0.1, 0.9)
    members = np.stack(
        [np.where(clusters == 0, right, wrong), np.where(clusters == 1, right, wrong)]
    )
    bags = greedy_weights(members, y, clusters, seed=0) * 10
    assert bags == pytest.approx(np.round(bags))


# Validation and blend


def test_clusters_of_some_rows_are_numbered_anew():
    validation = Validation.of({"b": [0.1] * 6, "a": [0.2] * 6}, [0, 1] * 3, list("zzyyxx"))
    assert validation.members == ["a", "b"]
    assert validation.clusters.tolist() == [2, 2, 1, 1, 0, 0]
    part = validation.take(np.array([1, 0, 0, 0, 1, 1], bool))
    assert part.clusters.tolist() == [1, 0, 0]
    assert part.y.tolist() == [0, 0, 1]


def test_rounding_leaves_a_mean_of_certainties_certain():
    weights = {"a": 0.7, "b": 0.1, "c": 0.2, "d": np.spacing(1.0)}
    blend = Blend(weights=weights)
    assert blend.predict_proba({name: [1.0] for name in weights}).max() <= 1


# Logistic regression, stacking and calibration


def test_logistic_regression_is_that_of_scikit_learn():
    y, z = simulate(500)
    rng = np.random.default_rng(0)
    x = np.column_stack([z + rng.normal(0, 1, 500), 3 + 0.2 * z, rng.normal(0, 5, 500)])
    coefficients, intercept = fit_logistic(x, y, prior_mean=0.0, prior_precision=1.0)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)
    assert coefficients == pytest.approx(theirs.coef_[0], abs=1e-4)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_stacking_of_few_rows_is_the_mean_logit():
    y = np.array([0, 1, 0, 1])
    predictions = {"a": np.full(4, 0.4), "b": np.full(4, 0.6)}
    blend = stack(Validation.of(predictions, y, np.arange(4)))
    assert list(blend.weights.values()) == pytest.approx([0.5, 0.5])


def test_stacking_shares_weight_among_copies_and_survives_certainty():
    y, z = simulate(400)
    predictions = {"a": expit(z), "b": expit(z), "certain": y.astype(float), "zero": np.zeros(400)}
    blend = stack(Validation.of(predictions, y, np.arange(400)))
    assert blend.weights["a"] == pytest.approx(blend.weights["b"])
    assert log_losses(y, blend.predict_proba(predictions)).mean() < 0.01


def test_sigmoid_calibration_is_platts():
    y, z = simulate(800, slope=0.5)
    fit = fit_calibration("sigmoid", y, expit(z))
    # His smoothed targets, as weighted copies of every row with both labels.
    positive, negative = int(y.sum()), int(len(y) - y.sum())
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x, labels = np.r_[z, z][:, None], np.repeat([1, 0], len(z))
    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(x, labels, np.r_[target, 1 - target])
    assert fit.slope == pytest.approx(theirs.coef_[0, 0], abs=1e-4)
    assert fit.intercept == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_isotonic_calibration_is_that_of_scikit_learn_but_never_certain():
    y, z = simulate(500)
    p = np.round(expit(z), 2)
    fit = fit_calibration("isotonic", y, p)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, y)
    grid = np.linspace(0, 1, 1001)
    margin = 1 / 502
    # Inside the margin the two bend at different places.
    inside = (theirs.predict(grid) > 0.02) & (theirs.predict(grid) < 0.98)
    assert fit.apply(grid)[inside] == pytest.approx(theirs.predict(grid)[inside], abs=0.01)
    assert fit.apply(p) == pytest.approx(np.clip(theirs.predict(p), margin, 1 - margin))
    assert fit.apply(grid).min() == pytest.approx(margin)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=30),
    st.sampled_from(["none", "sigmoid", "isotonic"]),
)
def test_calibration_never_turns_the_ranking_around(rows, kind):
    y = np.array([label for label, _ in rows], np.int8)
    p = np.sort([score for _, score in rows])
    if y.min() == y.max():
        return
    calibrated = fit_calibration(kind, y, p).apply(p)
    assert (np.diff(calibrated) >= -1e-12).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    if kind != "none":
        assert ((calibrated > 0) & (calibrated < 1)).all()


def test_calibration_is_chosen_as_simple_as_the_errors_allow():
    def chosen(p_of_z, num_rows=4000):
        y, z = simulate(num_rows)
        return choose_calibration(y, p_of_z(z), make_folds(y, np.arange(num_rows), 0))

    assert chosen(expit) == "none"
    assert chosen(lambda z: expit(3 * z + 1)) == "sigmoid"
    assert chosen(lambda z: 0.4 * (z > 0) + 0.5 * expit(8 * np.abs(z) - 8) * (z > 0)) == "isotonic"


# Folds


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=4, max_size=60),
    st.integers(0, 5),
)
def test_folds_keep_clusters_whole_and_always_fit_on_both_classes(rows, seed):
    y = np.array([label for label, _ in rows], np.int8)
    groups = np.unique(sorted(group for _, group in rows), return_inverse=True)[1]
    folds = make_folds(y, groups, seed)
    if min(y.sum(), len(y) - y.sum()) < 2:
        assert folds is None
        return
    assert 1 <= folds.fold.max() < 5
    for cluster in np.unique(folds.clusters):
        assert len(np.unique(folds.fold[folds.clusters == cluster])) == 1
    for train, held in folds:
        assert held.any()
        assert not (train & held).any()
        assert set(y[train]) == {0, 1}
    if (folds.clusters != groups).any():
        assert "cannot be cross-validated whole" in folds.note


@pytest.mark.parametrize("num_positive", range(2, 64))
def test_two_rows_of_a_class_are_enough(num_positive):
    y = np.r_[np.ones(num_positive), np.zeros(2)].astype(np.int8)
    folds = make_folds(y, np.zeros(len(y), np.int64), 0)
    assert all(set(y[train]) == {0, 1} for train, _ in folds)


def test_folds_share_the_positives():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 25)
    y = (rng.random(1500) < rng.choice([0, 0.1, 0.9], 60)[groups]).astype(np.int8)
    folds = make_folds(y, groups, 0)
    assert (folds.clusters == groups).all()
    assert folds.note is None
    positives = [y[held].sum() for _, held in folds]
    assert max(positives) < 1.15 * min(positives)
    assert (make_folds(y, groups, 0).fold == folds.fold).all()
    assert (make_folds(y, groups, 1).fold != folds.fold).any()


def test_few_groups_make_rough_errors():
    y = np.tile([0, 1], 30).astype(np.int8)
    folds = make_folds(y, np.repeat([0, 1, 2], 20), 0)
    assert folds.fold.max() == 2
    assert folds.note == "there are 3 validation groups: standard errors are rough"


def test_classes_that_live_in_blocks_are_folded_by_rows():
    y = np.r_[np.ones(2), np.zeros(98)].astype(np.int8)  # both positives in the first block
    folds = make_folds(y, np.zeros(100, np.int64), 0)
    assert (folds.clusters == np.arange(100)).all()
    assert folds.note == (
        "1 validation group(s) cannot be cross-validated whole: single rows were; "
        "errors may be larger than stated"
    )


# Comparison


@pytest.mark.parametrize("metric", ["f1", "accuracy", "auc", "log_loss"])
@pytest.mark.parametrize("rows_a_group", [1, 20])
def test_standard_errors_are_those_of_the_bootstrap(metric, rows_a_group):
    rng = np.random.default_rng(2)
    clusters = np.arange(2000) // rows_a_group
    z = rng.normal(0, 1, 2000) + rng.normal(0, 1, clusters.max() + 1)[clusters]
    y = (rng.random(2000) < expit(z)).astype(np.int8)
    p = np.round(expit(z + rng.normal(0, 1, 100)[clusters % 100]), 2)
    score = Score.of_objective(y, p, p >= 0.4, metric)
    assert score.value == pytest.approx(binary_metrics(y, p, 0.4)[metric])
    assert score.influence.mean() == pytest.approx(0, abs=1e-12)
    interval = bootstrap_intervals(y, p, 0.4, groups=clusters, confidence=0.6827)[metric]
    assert score.stderr(clusters) == pytest.approx((interval.high - interval.low) / 2, rel=0.12)


def test_the_simplest_within_one_paired_standard_error_is_taken():
    clusters = np.arange(4)
    noise = np.array([1.0, -1.0, 1.0, -1.0])  # stderr of any difference of `noise` is 1 / sqrt(3)
    best = Score(1.0, 0 * noise)
    near, far = Score(0.5, noise), Score(0.4, noise)
    assert not exceeds(best, near, clusters)
    assert exceeds(best, far, clusters)
    assert simplest_near_best([far, near, best], clusters, "max") == 1
    assert simplest_near_best([far, best, near], clusters, "max") == 1
    assert simplest_near_best([best, near], clusters, "min") == 0
    # Noise that is the same in both cancels out: here any difference counts, but for rounding.
    assert simplest_near_best([near, far], clusters, "min") == 1
    assert simplest_near_best([Score(0.4 + 1e-16, noise), far], clusters, "min") == 0


def test_logit_and_expit_do_not_overflow():
    assert expit(np.array([-1e4, 0.0, 1e4])) == pytest.approx([0, 0.5, 1])
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()
    p = np.linspace(0.001, 0.999, 99)
    assert expit(logit(p)) == pytest.approx(p)
