"""Episodes: a room over some minutes, from what goes on in it to the 18 features of every reading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from ray_jobs.data.features import INTERVAL_S, extract_features
from ray_jobs.data.simulator import activities, faults, fires
from ray_jobs.data.simulator.gas import measure_co2
from ray_jobs.data.simulator.scene import Scene, draw_room
from ray_jobs.data.simulator.thermal import Frames, film

MIN_READINGS, MAX_READINGS = 60, 140  # 5 to 12 minutes

# Shares of the episodes. Half of them are about a fire, and start before it does.
SCENARIOS = {
    "quiet": 0.06,
    "people": 0.09,
    "cooking": 0.12,
    "heater": 0.07,
    "sunlight": 0.05,
    "ventilation": 0.06,
    "sensor_fault": 0.07,
    "flaming": 0.13,
    "smouldering": 0.08,
    "electrical": 0.09,
    "chemical": 0.07,
    "cooking_fire": 0.11,
}
FIRE_KINDS = {
    "flaming": "flaming",
    "smouldering": "smouldering",
    "electrical": "electrical",
    "chemical": "chemical",
    "cooking_fire": "cooking",
}
EVERYDAY = ("quiet", "people", "cooking", "heater", "sunlight", "ventilation")


@dataclass(frozen=True)
class Episode:
    """What the sensors of one room read, and whether a fire burnt."""

    scenario: str
    time_s: NDArray[np.float64]  # [T]
    frames_c: Frames  # [T, 24, 32] degC, NaN where the camera gave nothing
    co2_ppm: NDArray[np.float64]  # [T], NaN where the sensor gave nothing
    fire: NDArray[np.int8]  # [T], 1 while a fire burns
    heat_release_kw: NDArray[np.float64]  # [T], of the fire

    def features(self) -> NDArray[np.float32]:
        """[T, 18], as `extract_features` computes them from any readings."""
        return extract_features(self.frames_c, self.co2_ppm)


def episode_lengths(seed: int, num_samples: int) -> NDArray[np.int64]:
    """Readings of each episode, adding up to `num_samples`: the last one is cut off where the dataset ends.

    The episodes of a smaller dataset are the first ones of a larger one.
    """
    rng = np.random.default_rng(SeedSequence(seed, spawn_key=(0,)))
    lengths = rng.integers(MIN_READINGS, MAX_READINGS + 1, -(-num_samples // MIN_READINGS))
    ends = np.minimum(np.cumsum(lengths), num_samples)
    return np.trim_zeros(np.diff(ends, prepend=0), "b")


def simulate_episode(
    seed: int, index: int, num_readings: int, scenario: str | None = None
) -> Episode:
    """Episode `index` of the dataset of `seed`, or one of a given scenario."""
    rng = np.random.default_rng(SeedSequence(seed, spawn_key=(1, index)))
    drawn = str(rng.choice(list(SCENARIOS), p=list(SCENARIOS.values())))
    scenario = scenario or drawn
    scene = Scene(draw_room(rng), np.arange(num_readings) * INTERVAL_S)
    activities.add_clutter(rng, scene)
    activities.add_people(rng, scene, int(rng.choice(4, p=[0.4, 0.35, 0.15, 0.1])))
    if scenario in FIRE_KINDS:
        fire = _add_fire(rng, scene, scenario)
        burning, power_kw = fire.is_burning(scene.time_s), fire.heat_release_kw(scene.time_s)
    else:
        _add_everyday(rng, scene, str(rng.choice(EVERYDAY)) if scenario == "sensor_fault" else scenario)
        burning, power_kw = np.zeros(num_readings, dtype=bool), np.zeros(num_readings)
    frames_c, co2_ppm = film(rng, scene), measure_co2(rng, scene)
    if scenario == "sensor_fault" or rng.random() < 0.05:
        faults.add_fault(rng, frames_c, co2_ppm)
    return Episode(
        scenario, scene.time_s, frames_c, co2_ppm, burning.astype(np.int8), power_kw
    )


def _add_everyday(rng: Generator, scene: Scene, scenario: str) -> None:
    if scenario == "people":
        activities.add_people(rng, scene, int(rng.integers(2, 7)))
    elif scenario == "cooking":
        activities.add_cooking(rng, scene)
    elif scenario == "heater":
        activities.add_heater(rng, scene)
    elif scenario == "sunlight":
        activities.add_sunlight(rng, scene)
    elif scenario == "ventilation":
        activities.add_ventilation_change(rng, scene)


def _add_fire(rng: Generator, scene: Scene, scenario: str) -> fires.Fire:
    """A fire amid everyday life. Some are due only after the episode's end: what leads up to them is no fire."""
    ignition_s = rng.uniform(0.05, 0.8) * scene.duration_s
    if rng.random() < 0.1:
        ignition_s += scene.duration_s
    fire = fires.draw_fire(rng, fires.KINDS[FIRE_KINDS[scenario]], ignition_s)
    place_m = scene.draw_position(rng)
    if scenario == "cooking_fire":
        place_m = activities.add_cooking(rng, scene, forgotten_until_s=ignition_s)
    else:
        _add_everyday(rng, scene, str(rng.choice(EVERYDAY)))
    if scenario == "electrical":
        fires.add_overheating(rng, scene, place_m, ignition_s)
    fires.add_fire(rng, scene, fire, place_m)
    return fire
