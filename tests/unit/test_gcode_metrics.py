from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.errors import DataError
from ray_jobs.gcode_metrics import (
    HEAD_METRICS,
    GcodeLines,
    Tolerance,
    bootstrap_intervals,
    bootstrap_margin,
    command_scores,
    constant_lines,
    gcode_metrics,
    wide_tolerances,
)
from ray_jobs.gcode_predictions import GcodePredictions
from ray_jobs.models.gcode_spec import ValueTolerance
from ray_jobs.storage import Storage

NAN = float("nan")
TOLERANCE = ValueTolerance().parsed()


def lines(commands: list[int], values: list[dict[str, float]], guess: float = NAN) -> GcodeLines:
    """Lines that set what `values` names; the other values are `guess`."""
    value = np.array([[of.get(name, guess) for name in PARAMETERS] for of in values])
    is_set = np.array([[name in of for name in PARAMETERS] for of in values])
    return GcodeLines(np.array(commands), is_set, value)


TRUE = lines([0, 1, 1, -1], [{"X": 1.0, "Y": 2.0}, {"Z": 0.5, "F": 100.0}, {"X": 3.0}, {}])
SAID = lines(
    [0, 1, 0, 1],  # the last one's command no model can name
    [{"X": 1.1, "Y": 2.2}, {"Z": 0.505, "F": 106.0}, {"X": 3.0, "Y": 9.0}, {}],
    guess=7.0,
)


def test_hand_worked() -> None:
    metrics = gcode_metrics(TRUE, SAID, TOLERANCE)
    assert metrics == pytest.approx(
        {
            "command_acc": 2 / 4,
            "param_type_acc": 3 / 4,  # the third says Y, too
            "param_value_acc": 3 / 5,  # X 1.1, Z 0.505, X 3.0; not Y 2.2, F 106
            "composite_acc": 0.5 * 0.75 * 0.6,
            "param_value_acc_F": 0.0,
            "param_value_acc_X": 1.0,
            "param_value_acc_Y": 0.0,
            "param_value_acc_Z": 1.0,
            "param_value_mae_F": 6.0,
            "param_value_mae_X": 0.05,
            "param_value_mae_Y": 0.2,
            "param_value_mae_Z": 0.005,
        }
    )  # nothing of R, which no line sets


def test_a_value_is_judged_where_the_true_line_sets_it_whatever_the_model_says_is_set() -> None:
    nothing = replace(SAID, param_type=np.zeros_like(SAID.param_type))
    metrics = gcode_metrics(TRUE, nothing, TOLERANCE)
    assert metrics["param_value_acc"] == pytest.approx(3 / 5)
    assert metrics["param_type_acc"] == 1 / 4


@pytest.mark.parametrize(
    ("name", "true", "error", "is_right"),
    [
        ("X", 5.0, 0.1, True),
        ("X", 5.0, -0.1001, False),
        ("Y", -5.0, 0.1, True),
        ("Z", 5.0, 0.01, True),
        ("Z", 5.0, 0.0101, False),
        ("F", 100.0, 5.0, True),
        ("F", 100.0, -5.1, False),
        ("R", -2.0, 0.1, True),  # of its size
        ("R", -2.0, 0.11, False),
    ],
)
def test_tolerance_of_each_axis(name: str, true: float, error: float, is_right: bool) -> None:
    said = lines([0], [{name: true + error}], guess=0.0)
    metrics = gcode_metrics(lines([0], [{name: true}]), said, TOLERANCE)
    assert metrics["param_value_acc"] == is_right


def test_tolerance_is_a_number_or_a_share() -> None:
    parsed = ValueTolerance(X=1, Z="2.5 %").parsed()
    assert parsed == Tolerance((0.0, 0.0, 1.0, 0.1, 0.0), (0.05, 0.05, 0.0, 0.0, 0.025))
    with pytest.raises(ValidationError, match="neither a number in machine units nor a share as 5"):
        ValueTolerance(X="5 inches")
    with pytest.raises(ValidationError, match="a tolerance must be above 0, not 0"):
        ValueTolerance(X=0.0)


def test_where_no_line_sets_a_value_there_is_no_composite() -> None:
    empty = lines([0, 1], [{}, {}])
    metrics = gcode_metrics(empty, lines([0, 1], [{}, {}], guess=0.0), TOLERANCE)
    assert metrics == {"command_acc": 1.0, "param_type_acc": 1.0}


def test_scores_of_each_command() -> None:
    g0, g1 = command_scores(TRUE, SAID, ["G0", "G1"])
    assert (g0.support, g0.precision, g0.recall, g0.f1) == (1, 0.5, 1.0, pytest.approx(2 / 3))
    assert (g1.support, g1.precision, g1.recall, g1.f1) == (2, 0.5, 0.5, 0.5)
    (_, _, never) = command_scores(TRUE, SAID, ["G0", "G1", "G2"])
    assert (never.precision, never.recall, never.f1) == (None, None, None)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"param_value must be \[1, 5\], but is \[1, 4\]"):
        GcodeLines(np.zeros(1, int), np.zeros((1, 5), bool), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="4 true lines, but 1 said"):
        gcode_metrics(TRUE, lines([0], [{}], guess=0.0), TOLERANCE)
    with pytest.raises(ValueError, match="no windows to measure"):
        gcode_metrics(*[GcodeLines(np.zeros(0, int), *np.zeros((2, 0, 5)))] * 2, TOLERANCE)
    with pytest.raises(ValueError, match="a said command is below 0"):
        gcode_metrics(TRUE, replace(SAID, command=np.full(4, -1)), TOLERANCE)
    with pytest.raises(ValueError, match="a said value of a parameter that is set is not finite"):
        gcode_metrics(TRUE, replace(SAID, param_value=np.full((4, 5), NAN)), TOLERANCE)


def test_constant_says_what_train_says_most() -> None:
    train = lines(
        [2, 2, 1, 1, 1],
        [{"X": 1.0}, {"X": 2.0}, {"X": 9.0}, {"X": 3.0, "Y": 4.0}, {"Z": 8.0, "Y": 6.0}],
    )
    said = constant_lines(train, 2)
    assert said.command.tolist() == [1, 1]
    x, y, z = (PARAMETERS.index(name) for name in "XYZ")
    assert said.param_type.tolist() == [[name == "X" for name in PARAMETERS]] * 2
    assert said.param_value[0, [x, y, z]].tolist() == [2.5, 5.0, 8.0]
    assert said.param_value[1, PARAMETERS.index("R")] == 0.0


def test_a_tolerance_that_a_constant_passes_is_warned_of() -> None:
    train = lines([0] * 40, [{"X": x / 10, "Z": 0.5} for x in range(40)])
    said = constant_lines(train, 40)
    wide = ValueTolerance(X=3.0, Z=0.01).parsed()
    assert wide_tolerances(gcode_metrics(train, said, TOLERANCE), "val") == [
        "value_tolerance.Z is so wide that one constant is right for 100.0% of the Z values of "
        "val: param_value_acc says nothing of Z; lower value_tolerance.Z"
    ]
    assert len(wide_tolerances(gcode_metrics(train, said, wide), "val")) == 2


@st.composite
def pairs(draw: st.DrawFn) -> tuple[GcodeLines, GcodeLines, np.ndarray]:
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_set = rng.random((n, 5)) < draw(st.sampled_from([0.0, 0.2, 0.9]))
    values = rng.normal(0, 2, (n, 5))
    true = GcodeLines(rng.integers(-1, 3, n), is_set, np.where(is_set, values, NAN))
    said = GcodeLines(
        rng.integers(0, 3, n), is_set ^ (rng.random((n, 5)) < 0.1), values + rng.normal(0, 0.1)
    )
    return true, said, rng.integers(0, 4, n)


@given(pairs())
def test_against_a_plain_loop(drawn: tuple[GcodeLines, GcodeLines, np.ndarray]) -> None:
    true, said, _ = drawn
    near, num = 0, 0
    for i in range(len(true)):
        for p in range(5):
            if true.param_type[i, p]:
                wanted = true.param_value[i, p]
                share = TOLERANCE.absolute[p] + TOLERANCE.relative[p] * abs(wanted)
                near += abs(said.param_value[i, p] - wanted) <= share
                num += 1
    same = [t.tolist() == s.tolist() for t, s in zip(true.param_type, said.param_type, strict=True)]
    metrics = gcode_metrics(true, said, TOLERANCE)
    assert metrics["command_acc"] == pytest.approx(np.mean(true.command == said.command))
    assert metrics["param_type_acc"] == pytest.approx(np.mean(same))
    if num:
        assert metrics["param_value_acc"] == pytest.approx(near / num)
        product = np.prod([metrics[name] for name in HEAD_METRICS[1:]])
        assert metrics["composite_acc"] == pytest.approx(product)
    assert ("composite_acc" in metrics) == (num > 0)


@settings(max_examples=30)
@given(pairs(), st.randoms())
def test_order_does_not_matter_and_intervals_hold_the_value(
    drawn: tuple[GcodeLines, GcodeLines, np.ndarray], random: object
) -> None:
    true, said, groups = drawn
    order = np.arange(len(true))
    random.shuffle(order)  # type: ignore[attr-defined]

    def mixed(of: GcodeLines) -> GcodeLines:
        return GcodeLines(of.command[order], of.param_type[order], of.param_value[order])

    plain = bootstrap_intervals(true, said, TOLERANCE, groups=groups, num_resamples=60)
    other = bootstrap_intervals(
        mixed(true), mixed(said), TOLERANCE, groups=groups[order], num_resamples=60
    )
    for name, metric in plain.items():
        assert other[name].value == pytest.approx(metric.value)
        assert metric.low is None or metric.low <= metric.high
        assert (metric.low is None) == (other[name].low is None)
        if metric.low is not None:
            assert (other[name].low, other[name].high) == pytest.approx((metric.low, metric.high))
        if name in HEAD_METRICS:
            assert 0 <= metric.value <= 1


def test_intervals_are_over_runs_and_the_composite_is_of_each_resample() -> None:
    """Two runs, one decoded and one not: a resample has both, or one of them twice."""
    true = lines([0] * 8, [{"X": 1.0}] * 8)
    said = lines([0] * 4 + [1] * 4, [{"X": 1.0}] * 4 + [{"X": 2.0}] * 4)
    said = replace(said, param_value=np.nan_to_num(said.param_value))
    groups = np.repeat([7, 3], 4)
    metrics = bootstrap_intervals(true, said, TOLERANCE, groups=groups, num_resamples=500)
    composite = metrics["composite_acc"]
    assert (composite.value, composite.low, composite.high) == (0.25, 0.0, 1.0)
    assert metrics["param_type_acc"].low is None  # the same in all resamples
    one_run = bootstrap_intervals(true, said, TOLERANCE, groups=np.zeros(8))
    assert all(metric.low is None for metric in one_run.values())
    with pytest.raises(ValueError, match=r"groups must be \[8\]"):
        bootstrap_intervals(true, said, TOLERANCE, groups=[1, 2])


def test_margin_is_paired() -> None:
    """Runs differ in hardness, but one is better than the other by as much on each of them."""
    rng = np.random.default_rng(0)
    true = lines([0] * 600, [{"X": 1.0}] * 600)
    groups = np.repeat(np.arange(6), 100)
    hard = np.repeat([0.2, 0.3, 0.5, 0.6, 0.8, 0.9], 100)
    draw = rng.random(600)

    def named(share: np.ndarray) -> GcodeLines:
        value = np.nan_to_num(true.param_value)
        return GcodeLines((draw > share).astype(int), true.param_type, value)

    better, worse = named(hard), named(hard - 0.1)
    margin = bootstrap_margin(true, better, worse, TOLERANCE, groups=groups)
    alone = bootstrap_intervals(true, better, TOLERANCE, groups=groups)["composite_acc"]
    assert margin is not None
    assert margin.value == pytest.approx(0.1, abs=0.04)
    assert margin.low > 0
    assert margin.high - margin.low < (alone.high - alone.low) / 3
    one_run = bootstrap_margin(true, better, worse, TOLERANCE, groups=np.zeros(600))
    assert one_run is not None
    assert (one_run.value, one_run.low) == (margin.value, None)
    none = lines([0], [{}])
    said = lines([0], [{}], guess=0.0)
    assert bootstrap_margin(none, said, said, TOLERANCE, groups=[0]) is None


def predictions() -> GcodePredictions:
    return GcodePredictions(
        row_id=np.array([5, 6, 7, 8]),
        group=np.array([0, 0, 1, 1]),
        operation=np.array(["face1", "face1", "pocket1", "pocket1"], object),
        true=TRUE,
        predicted=SAID,
        commands=("G0", "G1"),
    )


def test_predictions_come_back_as_written(tmp_path: Path) -> None:
    storage, written = Storage(tmp_path), predictions()
    written.write(storage, "p.parquet")
    read = GcodePredictions.read(storage, "p.parquet")
    assert read.commands == written.commands
    assert read.operation.tolist() == written.operation.tolist()
    for one, other in ((read.true, written.true), (read.predicted, written.predicted)):
        for name in ("command", "param_type", "param_value"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert gcode_metrics(read.true, read.predicted, TOLERANCE) == gcode_metrics(
        TRUE, SAID, TOLERANCE
    )


def test_predictions_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a command is not in -1\.\.0"):
        replace(predictions(), commands=("G0",))
    with pytest.raises(ValueError, match="differ in length"):
        replace(predictions(), row_id=np.arange(3))
    with pytest.raises(ValueError, match="only there"):
        replace(predictions(), true=replace(TRUE, param_type=~TRUE.param_type))
    storage = Storage(tmp_path)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="these are not predictions of G-code"):
        GcodePredictions.read(storage, "p.parquet")
