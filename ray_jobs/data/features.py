"""The 18 features of the fire workload, from thermal frames and CO2 readings.

Simulated and real readings take the same way: `extract_features` wants what a radiometric camera (a
FLIR Lepton 3.x, binned 5x5 to 24 x 32 pixels) and an NDIR CO2 sensor (a Sensirion SCD41) deliver,
one pair every five seconds. Every feature looks back at most `LOOKBACK` readings, so a buffer of
`LOOKBACK + 1` of them reproduces a row.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ray_jobs.errors import DataError

FEATURES = (
    "t_mean",  # degC, mean of the frame
    "t_std",  # degC, spread of the frame
    "t_max",  # degC, hottest pixel
    "t_p95",  # degC, 95th percentile; a hot spot of few pixels lifts t_mean above it
    "t_hot_area_pct",  # % of pixels HOT_ABOVE_MEDIAN_C or more above the frame's median
    "t_hot_largest_blob_pct",  # % of pixels in the largest 8-connected group of those
    "t_grad_mean",  # degC/pixel, mean size of the spatial gradient
    "t_grad_std",  # degC/pixel, its spread over the frame
    "t_diff_mean",  # degC, mean absolute change of a pixel since the last reading
    "t_diff_std",  # degC, its spread over the frame
    "flow_mag_mean",  # pixels/reading, mean length of the optical flow since the last reading
    "flow_mag_std",  # pixels/reading, its spread over the frame
    "tproxy_val",  # degC, mean of the frame's hottest quarter: steadier than t_max
    "tproxy_delta",  # degC, its change over the last minute
    "tproxy_vel",  # degC/reading, its slope over the last half minute
    "gas_val",  # ppm, CO2
    "gas_delta",  # ppm, its change over the last minute
    "gas_vel",  # ppm/reading, its slope over the last half minute
)

INTERVAL_S = 5.0  # an SCD41 measures once in 5 s
LOOKBACK = 12  # readings in a minute: what a delta spans
SLOPE_READINGS = 7  # readings that span half a minute

HOT_ABOVE_MEDIAN_C = 10.0
FLOW_WINDOW = 5  # pixels
FLOW_MIN_EIGENVALUE = 0.05  # (degC/pixel)^2; below it a window has too little texture to follow

Frames = NDArray[np.float32]  # [T, H, W]
Series = NDArray[np.float32]  # [T]


def extract_features(frames_c: Frames, co2_ppm: Series) -> NDArray[np.float32]:
    """The features of a run of readings, each from its own reading and earlier ones alone.

    A missing reading (a frame with a non-finite pixel, a non-finite CO2 value) is replaced by the
    last one before it, as a device driver does.

    Args:
        frames_c: degC, [T, 24, 32] (other sizes work), one frame every `INTERVAL_S`, in time order.
        co2_ppm: ppm, [T], read together with the frames.

    Returns:
        [T, 18] in the order of `FEATURES`. Deltas, slopes, differences and flow of the first
        reading are 0; a history shorter than a minute is used as far as it goes.

    Raises:
        DataError: the shapes do not fit, or the first reading is missing: there is nothing to hold.
    """
    frames = np.asarray(frames_c, dtype=np.float32)
    co2 = np.asarray(co2_ppm, dtype=np.float32)
    if frames.ndim != 3 or co2.shape != frames.shape[:1] or not len(co2):
        raise DataError(
            f"thermal frames of shape {frames.shape} and CO2 readings of shape {co2.shape} do not "
            "fit: give [T, height, width] and [T], one of each per reading"
        )
    if min(frames.shape[1:]) < FLOW_WINDOW:
        raise DataError(
            f"thermal frames of {frames.shape[1]} x {frames.shape[2]} pixels are too small: "
            f"optical flow needs {FLOW_WINDOW} x {FLOW_WINDOW}"
        )
    frames, co2 = hold_last(frames, "thermal frame"), hold_last(co2, "CO2 reading")
    ordered = np.sort(frames.reshape(len(frames), -1), axis=1)
    # In float64, so that rounding never puts a mean above the maximum.
    warm_side = ordered[:, ordered.shape[1] * 3 // 4 :].mean(axis=1, dtype=np.float64)
    columns = (
        ordered.mean(axis=1, dtype=np.float64),
        ordered.std(axis=1, dtype=np.float64),
        ordered[:, -1],
        _quantile(ordered, 0.95),
        *_hot_areas(frames, _quantile(ordered, 0.5) + HOT_ABOVE_MEDIAN_C),
        *_mean_and_std(_gradient_magnitude(frames)),
        *_mean_and_std(np.abs(_since_last(frames))),
        *_mean_and_std(flow_magnitude(frames)),
        *_trend(warm_side),
        *_trend(co2),
    )
    return np.stack(columns, axis=1).astype(np.float32, copy=False)


def hold_last(readings: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Readings [T, ...] with each missing one replaced by the last that was there.

    Raises:
        DataError: the first reading is missing.
    """
    flat = readings.reshape(len(readings), -1)
    present = np.logical_and.reduce(np.isfinite(flat), axis=1)
    if present.all():
        return readings
    if not present[0]:
        raise DataError(
            f"the first {what} of a run is missing, and there is none before it to hold: "
            "start the run at the first valid reading"
        )
    return readings[np.maximum.accumulate(np.where(present, np.arange(len(readings)), 0))]


def flow_magnitude(frames_c: Frames) -> Frames:
    """Length of the optical flow since the frame before, pixels/reading, [T, H - 4, W - 4].

    The first is 0. Lucas & Kanade, "An iterative image registration technique" (IJCAI 1981): one
    step, in a square window around each pixel whose window lies in the frame. Where the structure
    tensor's smaller eigenvalue shows no texture the flow is 0 (Shi & Tomasi, CVPR 1994). One step
    cannot see farther than its window: longer flow is cut to `FLOW_WINDOW`.
    """
    gy, gx = _gradients((frames_c[1:] + frames_c[:-1]) * np.float32(0.5))
    gt = frames_c[1:] - frames_c[:-1]
    xx, xy, yy, xt, yt = (
        _window_mean(product) for product in (gx * gx, gx * gy, gy * gy, gx * gt, gy * gt)
    )
    determinant = xx * yy - xy * xy
    half_trace = (xx + yy) / 2
    smaller_eigenvalue = half_trace - np.sqrt(np.maximum(half_trace**2 - determinant, 0))
    across, down = xy * yt - yy * xt, xy * xt - xx * yt  # times the determinant
    flow = np.zeros((len(frames_c), *xx.shape[1:]), dtype=np.float32)
    np.divide(
        np.sqrt(across * across + down * down),
        determinant,
        out=flow[1:],
        where=smaller_eigenvalue > FLOW_MIN_EIGENVALUE,
    )
    return np.minimum(flow, FLOW_WINDOW, out=flow)


def _quantile(ordered: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    """Quantile of rows [T, P] already sorted, interpolated linearly."""
    position = share * (ordered.shape[1] - 1)
    index, weight = int(position), position % 1
    low, high = ordered[:, [index, min(index + 1, ordered.shape[1] - 1)]].T.astype(np.float64)
    return low + weight * (high - low)


def _hot_areas(frames: Frames, threshold_c: NDArray[np.float64]) -> tuple[Series, Series]:
    """Share of hot pixels and of the largest connected group of them, %, each [T]."""
    from scipy import ndimage

    hot = frames >= threshold_c[:, None, None]
    within_frame = np.zeros((3, 3, 3), dtype=bool)
    within_frame[1] = True  # 8 neighbours in space, none in time
    labels, _ = ndimage.label(hot, structure=within_frame)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = sizes[labels].reshape(len(frames), -1).max(axis=1)
    to_pct = 100 / frames[0].size
    return (
        (hot.sum(axis=(1, 2)) * to_pct).astype(np.float32),
        (largest * to_pct).astype(np.float32),
    )


def _gradients(frames: Frames) -> tuple[Frames, Frames]:
    """Central differences down and across, degC/pixel."""
    return np.gradient(frames, axis=1), np.gradient(frames, axis=2)


def _gradient_magnitude(frames: Frames) -> Frames:
    gy, gx = _gradients(frames)
    return np.sqrt(gy * gy + gx * gx)


def _since_last(frames: Frames) -> Frames:
    change = np.zeros_like(frames)
    np.subtract(frames[1:], frames[:-1], out=change[1:])
    return change


def _window_mean(images: Frames) -> Frames:
    """Mean of every `FLOW_WINDOW` x `FLOW_WINDOW` window within the images, [T, H - 4, W - 4]."""
    height, width = (size - FLOW_WINDOW + 1 for size in images.shape[1:])
    shifts = range(FLOW_WINDOW)
    rows = functools.reduce(np.add, (images[:, shift : shift + height] for shift in shifts))
    total = functools.reduce(np.add, (rows[:, :, shift : shift + width] for shift in shifts))
    return total / np.float32(FLOW_WINDOW**2)


def _mean_and_std(images: Frames) -> tuple[Series, Series]:
    flat = images.reshape(len(images), -1)
    return flat.mean(axis=1), flat.std(axis=1)


def _trend(series: Series) -> tuple[Series, Series, Series]:
    """A series, its change over `LOOKBACK` readings, its slope over `SLOPE_READINGS`."""
    earlier = series[np.maximum(np.arange(len(series)) - LOOKBACK, 0)]
    return series, series - earlier, _slope(series)


def _slope(series: Series) -> Series:
    """Least-squares slope per reading; a shorter history is used as far as it goes."""
    padded = np.r_[np.full(SLOPE_READINGS - 1, np.nan), series.astype(np.float64)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, SLOPE_READINGS)  # [T, readings]
    known = np.isfinite(windows)
    position = np.where(known, np.arange(SLOPE_READINGS), 0.0)
    centred = np.where(known, position - (position.sum(1) / known.sum(1))[:, None], 0.0)
    spread = np.maximum((centred**2).sum(1), 1e-9)  # one reading alone: 0 / 1e-9
    return ((centred * np.where(known, windows, 0.0)).sum(1) / spread).astype(np.float32)
