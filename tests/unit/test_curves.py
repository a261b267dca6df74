"""Curves and axes: against scikit-learn, and within their bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_run import THRESHOLD, make_predictions
from sklearn import metrics

from ray_jobs.metrics import binary_metrics
from ray_jobs.reporting import curves
from ray_jobs.reporting.charts import Axis

scored_rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@settings(deadline=None)
@given(scored_rows)
def test_curves_agree_with_scikit_learn(rows: list[tuple[int, float]]) -> None:
    y = np.array([label for label, _ in rows], dtype=np.int8)
    p = np.array([probability for _, probability in rows])
    ranking = curves.rank(y, p)
    fpr, tpr, thresholds = metrics.roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(ranking.false_positive_rate, fpr[1:])
    np.testing.assert_allclose(ranking.recall, tpr[1:])
    np.testing.assert_allclose(ranking.thresholds, thresholds[1:])
    precision, _, _ = metrics.precision_recall_curve(y, p)
    np.testing.assert_allclose(ranking.precision, precision[-2::-1][: len(ranking.precision)])
    assert ranking.average_precision == pytest.approx(metrics.average_precision_score(y, p))
    for threshold in (0.1, 0.5, 0.6):
        called = (p >= threshold).astype(int)
        expected = metrics.confusion_matrix(y, called, labels=[0, 1]).tolist()
        assert curves.confusion(y, p, threshold) == expected
        index = ranking.last_above(threshold)
        if index is None:
            assert called.sum() == 0
        else:
            assert ranking.f1[index] == pytest.approx(metrics.f1_score(y, called))


def test_reliability_is_the_calibration_error_bin_by_bin() -> None:
    part = make_predictions()
    bins = curves.reliability(part.y, part.ensemble)
    filled = bins.num_rows > 0
    gaps = np.abs(bins.mean_probability - bins.frequency)[filled]
    ece = binary_metrics(part.y, part.ensemble, THRESHOLD)["ece"]
    assert np.average(gaps, weights=bins.num_rows[filled]) == pytest.approx(ece)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=60))
def test_thinned_line_stays_within_tolerance(points: list[tuple[float, float]]) -> None:
    line, tolerance = np.array(points), 0.1
    kept = curves.simplify(line, tolerance)
    assert kept[0] == 0
    assert kept[-1] == len(line) - 1
    for first, last in itertools.pairwise(kept):
        chord = line[last] - line[first]
        for point in line[first : last + 1]:
            share = np.clip((point - line[first]) @ chord / max(chord @ chord, 1e-12), 0, 1)
            assert np.hypot(*(point - line[first] - share * chord)) <= tolerance + 1e-9


@settings(deadline=None)
@example([1e308, -1e308])
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_axis_holds_its_values_with_few_round_ticks(values: list[float]) -> None:
    for axis in (Axis.around("", values), Axis.whole("", values)):
        held = [value for value in values if abs(value) < 1e100]
        assert axis.low < axis.high
        assert len(axis.ticks) <= 9
        for value in held:
            assert -0.01 <= axis.place(value, 0, 100) <= 100.01
