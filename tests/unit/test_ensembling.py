"""build_ensemble: what must hold of any ensemble, whatever the members."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.ensembling.build import build_ensemble
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.ensembling.strategies import STRATEGIES
from ray_jobs.metrics import binary_metrics, log_losses
from ray_jobs.result import EnsembleResult, Objective

OBJECTIVES = {
    name: Objective(metric=name, mode="min" if name == "log_loss" else "max")
    for name in ("f1", "accuracy", "auc", "log_loss")
}


def expit(z):
    return 1 / (1 + np.exp(-z))


def data(num_rows=300, rows_a_group=10, seed=0):
    """Labels, groups, and the log-odds they were drawn from."""
    rng = np.random.default_rng(seed)
    groups = np.arange(num_rows) // rows_a_group
    z = rng.normal(0, 1.5, num_rows) + rng.normal(-0.5, 1, groups.max() + 1)[groups]
    y = (rng.random(num_rows) < expit(z)).astype(np.int8)
    y[:2], y[-2:] = (0, 1), (0, 1)  # both classes, whatever the draw
    return y, groups, z


# Each makes a member out of the log-odds, the labels and random numbers.
KINDS = {
    "fair": lambda z, y, rng: expit(z + rng.normal(0, 0.7, len(z))),
    "weak": lambda z, y, rng: expit(z + rng.normal(0, 3, len(z))),
    "timid": lambda z, y, rng: expit(0.2 * z),
    "overconfident": lambda z, y, rng: expit(6 * (z + rng.normal(0, 1, len(z)))),
    "certain": lambda z, y, rng: (z + rng.normal(0, 1, len(z)) > 0).astype(float),
    "wrong": lambda z, y, rng: expit(-3 * z),
    "certainly wrong": lambda z, y, rng: 1.0 - y,
    "constant": lambda z, y, rng: np.full(len(z), 0.3),
    "zero": lambda z, y, rng: np.zeros(len(z)),
    "noise": lambda z, y, rng: rng.random(len(z)),
    "coarse": lambda z, y, rng: np.round(expit(z + rng.normal(0, 1, len(z))), 1),
    "perfect": lambda z, y, rng: y.astype(float),
}


def members(kinds, y, z, seed=0):
    return {
        f"m{number}_{kind.replace(' ', '_')}": KINDS[kind](
            z, y, np.random.default_rng(seed + number)
        )
        for number, kind in enumerate(kinds)
    }


def build(predictions, y, groups, strategy="auto", calibration="auto", objective="f1", seed=0):
    return build_ensemble(
        predictions,
        y,
        groups,
        strategy=strategy,
        calibration=calibration,
        objective=OBJECTIVES[objective],
        seed=seed,
    )


def excess_log_loss(p, reference, y, clusters):
    """Mean difference in log-loss and its cluster-robust standard error, in plain loops."""
    difference = log_losses(y, p) - log_losses(y, reference)
    mean = difference.mean()
    names = np.unique(clusters)
    sums = [sum(difference[clusters == name] - mean) for name in names]
    factor = len(names) / (len(names) - 1)
    return mean, np.sqrt(factor * sum(s**2 for s in sums)) / len(y)


KIND_LISTS = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(
    KIND_LISTS,
    st.integers(0, 1000),
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(["auto", "none", "sigmoid", "isotonic"]),
    st.sampled_from([20, 150, 400]),
    st.sampled_from([1, 7]),
)
def test_auto_is_never_worse_than_its_best_member(
    kinds, seed, objective, calibration, num_rows, rows_a_group
):
    y, groups, z = data(num_rows, rows_a_group, seed)
    predictions = members(kinds, y, z, seed)
    ensemble = build(
        predictions, y, groups, calibration=calibration, objective=objective, seed=seed
    )
    p = ensemble.predict_proba(predictions)
    best = min(predictions.values(), key=lambda q: log_losses(y, q).mean())
    excess, error = excess_log_loss(p, best, y, groups)
    assert excess <= error + 1e-12
    assert ((p >= 0) & (p <= 1)).all()
    assert [c.chosen for c in ensemble.candidates].count(True) == 1
    assert next(c for c in ensemble.candidates if c.chosen).strategy == ensemble.strategy
    again = Ensemble.model_validate_json(ensemble.model_dump_json())
    assert again == ensemble
    assert (again.predict_proba(predictions) == p).all()


@settings(max_examples=25, deadline=None)
@given(KIND_LISTS, st.integers(0, 1000), st.sampled_from(sorted(STRATEGIES)))
def test_a_strategy_by_name_is_kept_and_says_if_it_is_worse(kinds, seed, strategy):
    y, groups, z = data(seed=seed)
    predictions = members(kinds, y, z, seed)
    ensemble = build(predictions, y, groups, strategy=strategy)
    name = "single" if len(predictions) == 1 else strategy
    assert ensemble.strategy.partition(":")[0] == name
    best = min(predictions.values(), key=lambda q: log_losses(y, q).mean())
    excess, error = excess_log_loss(ensemble.predict_proba(predictions), best, y, groups)
    if excess > error + 1e-12:
        assert any("exceeds the log-loss of" in note for note in ensemble.notes)
    if name not in ("stacking", "single"):
        assert sum(ensemble.weights.values()) == pytest.approx(1)
        assert min(ensemble.weights.values()) > 0


def test_a_bad_average_is_noted_word_for_word():
    y, groups, z = data(600)
    predictions = members(["fair", "wrong", "noise"], y, z)
    ensemble = build(predictions, y, groups, strategy="equal", calibration="none")
    assert ensemble.notes == (
        "equal exceeds the log-loss of m0_fair, alone and uncalibrated, by more than one "
        "standard error",
    )


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_the_order_of_members_has_no_effect(strategy):
    y, groups, z = data()
    predictions = members(["fair", "weak", "timid", "overconfident"], y, z)
    forward = build(predictions, y, groups, strategy=strategy)
    backward = build(dict(reversed(predictions.items())), y, groups, strategy=strategy)
    assert forward == backward


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_a_duplicate_changes_little(strategy):
    y, groups, z = data(600)
    predictions = members(["fair", "fair", "weak"], y, z)
    doubled = predictions | {"m1_again": predictions["m1_fair"]}
    losses = [
        log_losses(y, build(p, y, groups, strategy=strategy).predict_proba(p)).mean()
        for p in (predictions, doubled)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


def test_a_single_member_can_be_the_choice():
    y, groups, z = data(900)
    predictions = {"truth": expit(z), **members(["weak", "noise", "constant"], y, z)}
    ensemble = build(predictions, y, groups)
    assert ensemble.strategy == "single:truth"
    assert ensemble.weights == {"truth": 1.0}
    assert ensemble.calibration.kind == "none"
    assert {c.strategy for c in ensemble.candidates} == {
        "single:truth", "equal", "exponential", "greedy", "stacking",
    }  # fmt: skip


def test_members_that_complement_each_other_are_combined():
    y, groups, z = data(3000)
    predictions = members(["fair"] * 4, y, z)
    ensemble = build(predictions, y, groups, objective="log_loss")
    assert len(ensemble.members) == 4
    loss = log_losses(y, ensemble.predict_proba(predictions)).mean()
    assert loss < min(log_losses(y, p).mean() for p in predictions.values()) - 0.01


def test_an_overconfident_member_is_calibrated():
    y, groups, z = data(2000)
    predictions = {"loud": expit(4 * z)}
    ensemble = build(predictions, y, groups)
    assert ensemble.calibration.kind == "sigmoid"
    assert ensemble.calibration.slope == pytest.approx(0.25, abs=0.03)
    p = ensemble.predict_proba(predictions)
    before = binary_metrics(y, predictions["loud"], 0.5)
    after = binary_metrics(y, p, ensemble.threshold)
    assert after["ece"] < 0.05 < before["ece"]
    assert after["auc"] == pytest.approx(before["auc"])


def test_the_threshold_is_that_of_the_calibrated_blend():
    y, groups, z = data(600)
    predictions = members(["fair", "timid", "overconfident"], y, z)
    for objective in ("f1", "accuracy"):
        ensemble = build(predictions, y, groups, objective=objective)
        p = ensemble.predict_proba(predictions)
        best = binary_metrics(y, p, ensemble.threshold)[objective]
        assert all(binary_metrics(y, p, t).get(objective, 0) <= best for t in np.unique(p))


def test_a_strategy_of_too_much_log_loss_is_passed_over():
    y, groups, _ = data(900)
    # "sure" decides best and is dreadful where it is wrong; "shy" knows the base rate alone.
    sure = np.where(np.arange(900) % 12 == 0, 1.0 - y, y)
    predictions = {"sure": sure, "shy": np.full(900, y.mean())}
    ensemble = build(predictions, y, groups, calibration="none")
    simplest = ensemble.candidates[0]
    assert simplest.strategy == "single:sure"
    assert simplest.objective > 0.85
    assert simplest.log_loss > 1
    assert ensemble.strategy == "equal"
    assert ensemble.notes == ()


def test_where_everything_harms_the_best_member_is_taken_as_it_is():
    y, groups, z = data(150, rows_a_group=1)
    predictions = {"truth": expit(z)} | members(["fair", "noise"], y, z)
    # Steps fitted on 150 rows are worse than the true probabilities, whatever the blend.
    ensemble = build(predictions, y, groups, calibration="isotonic")
    assert ensemble.notes == (
        "single:truth exceeds the log-loss of truth, alone and uncalibrated, by more than one "
        "standard error: truth is taken so",
    )
    assert ensemble.strategy == "single:truth"
    assert (ensemble.predict_proba(predictions) == predictions["truth"]).all()
    names = [candidate.strategy for candidate in ensemble.candidates]
    assert len(names) == len(set(names))
    assert names[-1] == "single:truth"


@pytest.mark.parametrize("strategy", ["auto", "greedy"])
def test_the_same_seed_gives_the_same_ensemble(strategy):
    y, groups, z = data()
    predictions = members(["fair", "weak", "coarse"], y, z)
    assert build(predictions, y, groups, strategy) == build(predictions, y, groups, strategy)


def test_a_single_group_is_cut_into_blocks_with_a_note():
    y, _, z = data(200)
    ensemble = build(members(["fair", "weak"], y, z), y, np.zeros(200))
    assert ensemble.notes == (
        "1 validation group(s) cannot be cross-validated whole: blocks of neighbouring rows were; "
        "errors may be larger than stated",
    )
    assert len(ensemble.candidates) == 5


def test_one_positive_row_cannot_be_cross_validated():
    y = np.zeros(20, np.int8)
    y[3] = 1
    predictions = {"a": np.linspace(0, 1, 20), "b": np.full(20, 0.05)}
    ensemble = build(predictions, y, np.arange(20))
    assert ensemble.strategy == "single:b"
    assert ensemble.candidates == ()
    assert ensemble.notes == (
        "a class has a single validation row: nothing could be cross-validated",
    )
    assert build(predictions, y, np.arange(20), "equal").weights == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {}}, "an ensemble needs the predictions of at least one member"),
        ({"predictions": {"a": [0.5]}}, r"predictions of 'a': y and p must be \[N\] of one length"),
        ({"predictions": {"a": [np.nan] * 4}}, "predictions of 'a': p must be finite"),
        ({"y": [1, 1, 1, 1]}, "an ensemble needs validation rows of both classes"),
        ({"groups": [0]}, r"groups must be \[4\] as y"),
        ({"strategy": "best"}, "strategy 'best' is not one of auto, single, equal"),
        ({"calibration": "beta"}, "calibration 'beta' is not one of auto, none, sigmoid, isotonic"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"predictions": {"a": [0.1, 0.9, 0.2, 0.8]}, "y": [0, 1, 0, 1], "groups": range(4)}
    with pytest.raises(ValueError, match=message):
        build(**(given | change))


def test_prediction_needs_every_member():
    ensemble = Ensemble.model_validate(
        {
            "strategy": "equal",
            "blend": {"weights": {"a": 0.5, "b": 0.5}},
            "calibration": {"kind": "none"},
            "threshold": 0.5,
        }
    )
    assert ensemble.predict_proba({"a": [0.2], "b": [0.6], "c": [9]}) == pytest.approx([0.4])
    assert len(ensemble.predict_proba({"a": [], "b": []})) == 0
    for predictions, message in (
        ({"a": [0.2]}, "the ensemble needs predictions of 'b', but there are none"),
        ({"a": [0.2], "b": [np.nan]}, r"predictions of 'b' must be \[N\], finite and between 0"),
        ({"a": [0.2], "b": [0.1, 0.2]}, "predict different numbers of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.predict_proba(predictions)


def test_the_result_tells_what_was_chosen():
    y, groups, z = data()
    ensemble = build(members(["fair", "fair", "weak"], y, z), y, groups)
    result = ensemble.to_result()
    assert EnsembleResult.model_validate_json(result.model_dump_json()) == result
    assert result.strategy == ensemble.strategy
    assert result.weights == ensemble.weights
    assert result.calibration == ensemble.calibration.kind
    assert list(result.candidates) == list(ensemble.candidates)


def test_serving_loads_nothing_heavy():
    code = (
        "import sys; import ray_jobs.ensembling.ensemble; "
        "print([m for m in ('sklearn', 'scipy', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
