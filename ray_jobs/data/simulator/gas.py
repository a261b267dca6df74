"""From a scene to what an NDIR CO2 sensor reports, ppm.

The sensor's figures are the Sensirion SCD4x data sheet's: output range 0..40,000 ppm in whole ppm,
accuracy 40 ppm + 5 % of the reading at worst, repeatability 10 ppm, response time (63 %) 60 s.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ray_jobs.data.features import INTERVAL_S
from ray_jobs.data.simulator.scene import Scene
from ray_jobs.data.simulator.signals import Series, lag, wander

RANGE_PPM = (0.0, 40_000.0)
RESPONSE_S = 60.0


def room_co2_ppm(scene: Scene) -> Series:
    """CO2 of a well-mixed room, ppm [T]: V dC/dt = G + n V (C_outdoor - C).

    Exact for G and n held between readings. Persily, "Evaluating building IAQ and ventilation with
    indoor carbon dioxide" (ASHRAE Transactions 103, 1997).
    """
    room = scene.room
    source_ppm_s = scene.co2_l_s * 1000 / room.volume_m3  # 1 L in 1 m3 is 1000 ppm
    exchange_per_s = scene.air_changes_per_h / 3600
    settled = room.outdoor_co2_ppm + source_ppm_s / exchange_per_s
    keep = np.exp(-exchange_per_s * INTERVAL_S)
    level, levels = room.initial_co2_ppm, []
    for target, share in zip(settled.tolist(), keep.tolist(), strict=True):
        level = target + (level - target) * share
        levels.append(level)
    return np.array(levels)


def measure_co2(rng: Generator, scene: Scene) -> Series:
    """Readings of one sensor in the room, ppm [T]."""
    mixing_s = rng.uniform(15, 60)  # what the room's air takes
    at_sensor = lag(room_co2_ppm(scene), mixing_s)
    above_outdoor = np.maximum(at_sensor - scene.room.outdoor_co2_ppm, 0)
    eddies = wander(rng, scene.num_readings, 1.0, 40.0)
    eddies *= 3 + rng.uniform(0.01, 0.04) * above_outdoor
    response = lag(at_sensor + eddies, RESPONSE_S)
    gain, offset_ppm = rng.normal(1, 0.02), rng.normal(0, 18)
    noise_ppm = rng.normal(0, rng.uniform(3, 8), scene.num_readings)
    return np.clip(np.round(gain * response + offset_ppm + noise_ppm), *RANGE_PPM)
