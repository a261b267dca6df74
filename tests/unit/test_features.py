from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ray_jobs.data.features import (
    FEATURES,
    FLOW_WINDOW,
    LOOKBACK,
    extract_features,
    flow_magnitude,
)
from ray_jobs.errors import DataError

Array = NDArray[np.float32]


@st.composite
def readings(draw: st.DrawFn, *, min_readings: int = 1) -> tuple[Array, Array]:
    """Any thermal frames and CO2 readings that sensors could give."""
    num_readings = draw(st.integers(min_readings, 2 * LOOKBACK))
    shape = (num_readings, draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    temperatures = st.floats(-40, 450, width=32)
    frames = draw(hnp.arrays(np.float32, shape, elements=temperatures))
    concentrations = st.integers(0, 40_000).map(float)
    return frames, draw(hnp.arrays(np.float32, num_readings, elements=concentrations))


def quiet_room(num_readings: int = 20) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    frames = rng.normal(22, 0.3, (num_readings, 24, 32)).astype(np.float32)
    return frames, rng.normal(600, 5, num_readings).astype(np.float32)


def column(table: Array, name: str) -> Array:
    return table[:, FEATURES.index(name)]


def test_the_features_and_their_order() -> None:
    assert FEATURES == (
        "t_mean", "t_std", "t_max", "t_p95", "t_hot_area_pct", "t_hot_largest_blob_pct",
        "t_grad_mean", "t_grad_std", "t_diff_mean", "t_diff_std", "flow_mag_mean", "flow_mag_std",
        "tproxy_val", "tproxy_delta", "tproxy_vel", "gas_val", "gas_delta", "gas_vel",
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(readings())
def test_no_row_is_impossible(given_readings: tuple[Array, Array]) -> None:
    frames, co2 = given_readings
    table = extract_features(frames, co2)
    row = {name: column(table, name) for name in FEATURES}
    assert table.shape == (len(co2), 18)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert (row["t_max"] >= row["t_p95"]).all()
    assert (row["t_max"] >= row["tproxy_val"]).all()
    assert (row["tproxy_val"] >= row["t_mean"]).all()
    assert (row["t_hot_largest_blob_pct"] <= row["t_hot_area_pct"]).all()
    assert ((row["t_hot_area_pct"] >= 0) & (row["t_hot_area_pct"] <= 100)).all()
    assert (row["flow_mag_mean"] <= FLOW_WINDOW).all()
    for name in ("t_std", "t_grad_mean", "t_grad_std", "t_diff_mean", "t_diff_std", "flow_mag_std"):
        assert (row[name] >= 0).all(), name
    assert np.array_equal(row["gas_val"], co2)
    changes = [name for name in FEATURES if name.endswith(("delta", "vel")) or "diff" in name]
    assert not any(row[name][0] for name in [*changes, "flow_mag_mean", "flow_mag_std"])


@settings(deadline=None, max_examples=40)
@given(readings(min_readings=2), st.data())
def test_the_future_changes_nothing(
    given_readings: tuple[Array, Array], data: st.DataObject
) -> None:
    frames, co2 = given_readings
    now = data.draw(st.integers(1, len(co2) - 1))
    other_frames, other_co2 = frames.copy(), co2.copy()
    other_frames[now:] = 450 - other_frames[now:]
    other_co2[now:] += 1000
    before, after = extract_features(frames, co2), extract_features(other_frames, other_co2)
    assert np.array_equal(before[:now], after[:now])
    assert not np.array_equal(before[now:], after[now:])


@settings(deadline=None, max_examples=40)
@given(readings(min_readings=LOOKBACK + 1))
def test_a_minute_of_readings_is_enough(given_readings: tuple[Array, Array]) -> None:
    frames, co2 = given_readings
    buffer = slice(-LOOKBACK - 1, None)
    whole, last = extract_features(frames, co2), extract_features(frames[buffer], co2[buffer])
    np.testing.assert_allclose(last[-1], whole[-1], rtol=1e-4, atol=1e-3)


def test_a_missing_reading_is_the_last_one_held() -> None:
    frames, co2 = quiet_room()
    broken_frames, broken_co2 = frames.copy(), co2.copy()
    broken_frames[4:7] = np.nan
    broken_frames[10, 3, 5] = np.inf  # one bad pixel makes a bad frame
    broken_co2[2:9] = np.nan
    frames[4:7], frames[10], co2[2:9] = frames[3], frames[9], co2[1]
    assert np.array_equal(
        extract_features(broken_frames, broken_co2), extract_features(frames, co2)
    )


def test_unusable_readings_are_refused() -> None:
    frames, co2 = quiet_room()
    no_frame, no_co2 = frames.copy(), co2.copy()
    no_frame[0, 0, 0] = no_co2[0] = np.nan
    hold = (
        "of a run is missing, and there is none before it to hold: "
        "start the run at the first valid reading"
    )
    shapes = (
        "thermal frames of shape (20, 24, 32) and CO2 readings of shape (19,) do not fit: "
        "give [T, height, width] and [T], one of each per reading"
    )
    small = "thermal frames of 4 x 32 pixels are too small: optical flow needs 5 x 5"
    for bad, message in (
        ((no_frame, co2), f"the first thermal frame {hold}"),
        ((frames, no_co2), f"the first CO2 reading {hold}"),
        ((frames, co2[1:]), shapes),
        ((frames[:, :4], co2), small),
    ):
        with pytest.raises(DataError) as error:
            extract_features(*bad)
        assert str(error.value) == message


def test_statistics_are_those_of_numpy() -> None:
    frames, co2 = quiet_room()
    frames[:, 3:9, 4:20] += np.float32(35)
    table = extract_features(frames, co2)
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    np.testing.assert_allclose(column(table, "t_mean"), flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(column(table, "t_std"), flat.std(1), rtol=1e-6)
    np.testing.assert_allclose(column(table, "t_p95"), np.percentile(flat, 95, axis=1), rtol=1e-6)
    assert np.array_equal(column(table, "t_max"), frames.max((1, 2)))
    hottest = np.sort(flat)[:, -192:].mean(1)
    np.testing.assert_allclose(column(table, "tproxy_val"), hottest, rtol=1e-6)


def test_hot_pixels_connect_over_corners_but_not_over_time() -> None:
    frames, co2 = np.full((3, 24, 32), 20, np.float32), np.full(3, 500, np.float32)
    frames[0, 2:4, 2:4] = frames[0, 4:6, 4:6] = 40  # two squares that share a corner
    frames[0, 10:12, 20:23] = 30  # 10 K above the median is hot
    frames[1, 2:4, 2:4] = 40  # where the frame before was hot, too
    frames[1, 15, 15] = 29.9  # not hot
    table = extract_features(frames, co2)
    np.testing.assert_allclose(column(table, "t_hot_area_pct") * 7.68, [14, 4, 0], rtol=1e-5)
    np.testing.assert_allclose(column(table, "t_hot_largest_blob_pct") * 7.68, [8, 4, 0], rtol=1e-5)


def test_trends_of_a_steady_rise() -> None:
    frames, co2 = quiet_room()
    co2[:] = 500 + 3 * np.arange(20)
    table = extract_features(frames, co2)
    assert np.allclose(column(table, "gas_vel"), [0] + [3] * 19)
    assert np.allclose(column(table, "gas_delta"), 3 * np.minimum(np.arange(20), 12))


def test_gradient_and_difference_of_a_tilted_room_that_warms() -> None:
    across, down = np.meshgrid(np.arange(32), np.arange(24))
    frames = (20 + 0.3 * across + 0.4 * down + 2 * np.arange(5)[:, None, None]).astype(np.float32)
    table = extract_features(frames, np.full(5, 500, np.float32))
    np.testing.assert_allclose(column(table, "t_grad_mean"), 0.5, rtol=1e-4)
    np.testing.assert_allclose(column(table, "t_grad_std"), 0, atol=1e-4)
    np.testing.assert_allclose(column(table, "t_diff_mean"), [0, 2, 2, 2, 2], rtol=1e-5)


@given(st.floats(-1, 1), st.floats(-1, 1))
@settings(deadline=None, max_examples=25)
def test_flow_follows_a_warm_blob(right: float, down: float) -> None:
    rows, columns = np.meshgrid(np.arange(24), np.arange(32), indexing="ij")
    frames = np.stack(
        [
            20 + 30 * np.exp(-((columns - 15 - t * right) ** 2 + (rows - 11 - t * down) ** 2) / 18)
            for t in (0, 1)
        ]
    ).astype(np.float32)
    flow = flow_magnitude(frames)
    assert flow.shape == (2, 20, 28)
    assert not flow[0].any()
    near_blob = flow[1, 7:12, 11:16]
    assert abs(np.median(near_blob) - np.hypot(right, down)) < 0.15
    assert flow[1, :2, -4:].max() == 0  # nothing to see there


def test_an_offset_of_the_camera_moves_temperatures_only() -> None:
    frames, co2 = quiet_room()
    frames[:, 3:9, 4:20] += np.float32(35)
    moved = extract_features(frames + np.float32(4), co2) - extract_features(frames, co2)
    temperatures = [FEATURES.index(name) for name in ("t_mean", "t_max", "t_p95", "tproxy_val")]
    np.testing.assert_allclose(moved[:, temperatures], 4, atol=1e-4)
    np.testing.assert_allclose(np.delete(moved, temperatures, axis=1), 0, atol=2e-3)
