"""The time series that simulated rooms are made of, one value a reading."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.features import INTERVAL_S

Series = NDArray[np.float64]  # [T]


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform: 1..10 is as likely as 10..100."""
    return float(low * (high / low) ** rng.random())


def lag(signal: Series, time_constant_s: float) -> Series:
    """First-order response to a signal, at rest at its first value.

    Exact for a signal held between readings.
    """
    keep = np.exp(-INTERVAL_S / time_constant_s)
    steps = np.diff(signal, prepend=signal[0])
    response = 1 - keep ** (np.arange(len(signal)) + 1)
    return signal[0] + np.convolve(steps, response)[: len(signal)]


def wander(rng: Generator, num_readings: int, std: float, time_constant_s: float) -> Series:
    """A stationary Ornstein-Uhlenbeck process about 0."""
    keep = np.exp(-INTERVAL_S / time_constant_s)
    shocks = rng.standard_normal(num_readings) * std
    shocks[1:] *= np.sqrt(1 - keep**2)
    return np.convolve(shocks, keep ** np.arange(num_readings))[:num_readings]


def flicker(rng: Generator, num_readings: int, spread: float) -> Series:
    """Factors about 1 that know nothing of each other.

    A flame of diameter D metres puffs at 1.5 / sqrt(D) Hz (Pagni 1990; SFPE Handbook, "Fire plumes,
    flame height and air entrainment"), 2 to 7 Hz here: sampled every 5 s, nothing of the rhythm is
    left.
    """
    return np.exp(spread * rng.standard_normal(num_readings) - spread**2 / 2)
