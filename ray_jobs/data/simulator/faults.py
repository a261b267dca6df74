"""Sensor faults, put into sound readings. A missing reading is NaN, as a driver reports it."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ray_jobs.data.simulator.gas import RANGE_PPM
from ray_jobs.data.simulator.signals import Series, log_uniform
from ray_jobs.data.simulator.thermal import RANGE_C, Frames

FAULTS = ("drift", "dropout", "stuck")
SENSORS = ("camera", "co2", "both")


def add_fault(rng: Generator, frames_c: Frames, co2_ppm: Series) -> None:
    """Let one fault befall the camera, the CO2 sensor or both. Changes the readings in place.

    The first reading is never missing: a run of readings starts with one.
    """
    fault, sensor = rng.choice(FAULTS), rng.choice(SENSORS)
    start = int(rng.integers(1, len(frames_c)))
    stop = start + int(log_uniform(rng, 4, 120))
    if sensor != "co2":
        _spoil_camera(rng, frames_c, fault, start, stop)
    if sensor != "camera":
        _spoil_co2(rng, co2_ppm, fault, start, stop)


def _spoil_camera(rng: Generator, frames_c: Frames, fault: str, start: int, stop: int) -> None:
    if fault == "drift":  # the housing warms up or cools down
        ramp_c = np.linspace(0, rng.normal(0, 8), len(frames_c) - start, dtype=np.float32)
        frames_c[start:] = np.clip(frames_c[start:] + ramp_c[:, None, None], *RANGE_C)
    elif fault == "dropout":
        frames_c[start:stop] = np.nan
    elif rng.random() < 0.5:  # the picture freezes
        frames_c[start:stop] = frames_c[start]
    else:  # a pixel or four do
        size = rng.integers(1, 3)
        row, column = rng.integers(0, np.array(frames_c.shape[1:]) - size)
        frames_c[start:, row : row + size, column : column + size] = rng.uniform(40, 200)


def _spoil_co2(rng: Generator, co2_ppm: Series, fault: str, start: int, stop: int) -> None:
    if fault == "drift":
        ramp_ppm = np.linspace(0, rng.normal(0, 300), len(co2_ppm) - start)
        co2_ppm[start:] = np.clip(np.round(co2_ppm[start:] + ramp_ppm), *RANGE_PPM)
    elif fault == "dropout":
        co2_ppm[start:stop] = np.nan
    else:
        co2_ppm[start:stop] = co2_ppm[start]
