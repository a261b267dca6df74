"""Episodes: a room over some minutes, from what goes on in it to what its sensors read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from ray_jobs.data.features import extract_features
from ray_jobs.data.simulator import faults, fires
from ray_jobs.data.simulator.activities import (
    ACTIVITIES,
    add_clutter,
    add_forgotten_pan,
    add_people,
)
from ray_jobs.data.simulator.gas import measure_co2
from ray_jobs.data.simulator.scene import Scene, draw_room
from ray_jobs.data.simulator.signals import Series
from ray_jobs.data.simulator.thermal import Frames, film

MIN_READINGS, MAX_READINGS = 60, 140  # 5 to 12 minutes

# Shares of the episodes. Half tell of a fire; all of those begin, and some end, before it.
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
FAULT_SHARE = 0.05  # of the episodes of any other scenario: a sensor fails in the midst of them


@dataclass(frozen=True)
class Episode:
    """What the sensors of one room read, and whether a fire burnt."""

    scenario: str
    time_s: Series  # [T]
    frames_c: Frames  # [T, 24, 32] degC, NaN where the camera gave nothing
    co2_ppm: Series  # [T], NaN where the sensor gave nothing
    fire: NDArray[np.bool_]  # [T], while a fire burns
    heat_release_kw: Series  # [T], of the fire

    def features(self) -> NDArray[np.float32]:
        """[T, 18], as `extract_features` computes them from any readings."""
        return extract_features(self.frames_c, self.co2_ppm.astype(np.float32))


def episode_lengths(seed: int, num_samples: int) -> NDArray[np.int64]:
    """Readings of each episode, as many as `num_samples` takes; the last may go beyond it.

    A smaller dataset is the beginning of a larger one.
    """
    rng = np.random.default_rng(SeedSequence(seed, spawn_key=(0,)))
    lengths = rng.integers(MIN_READINGS, MAX_READINGS + 1, -(-num_samples // MIN_READINGS))
    return lengths[np.cumsum(lengths) - lengths < num_samples]


def simulate_episode(
    seed: int, index: int, num_readings: int = MAX_READINGS, scenario: str | None = None
) -> Episode:
    """Episode `index` of the dataset of `seed`, or one of a scenario of choice."""
    rng = np.random.default_rng(SeedSequence(seed, spawn_key=(1, index)))
    scenario = scenario or str(rng.choice(list(SCENARIOS), p=list(SCENARIOS.values())))
    scene = Scene(draw_room(rng), num_readings)
    add_clutter(rng, scene)
    add_people(rng, scene, int(rng.choice(4, p=[0.4, 0.35, 0.15, 0.1])))
    fire = None
    if scenario in fires.KINDS:
        fire = _add_fire(rng, scene, scenario)
    else:
        _add_activity(rng, scene, scenario)
    frames_c, co2_ppm = film(rng, scene), measure_co2(rng, scene)
    if scenario == "sensor_fault" or rng.random() < FAULT_SHARE:
        faults.add_fault(rng, frames_c, co2_ppm)
    nothing = np.zeros(num_readings)
    return Episode(
        scenario,
        scene.time_s,
        frames_c,
        co2_ppm,
        fire=fire.is_burning(scene.time_s) if fire else nothing.astype(bool),
        heat_release_kw=fire.heat_release_kw(scene.time_s) if fire else nothing,
    )


def _add_activity(rng: Generator, scene: Scene, name: str) -> None:
    """An activity by its name; any, for a name that is not one."""
    if name not in ACTIVITIES:
        name = str(rng.choice(list(ACTIVITIES)))
    ACTIVITIES[name](rng, scene)


def _add_fire(rng: Generator, scene: Scene, scenario: str) -> fires.Fire:
    """A fire amid everyday life. One in ten is due after the episode: only its prelude shows."""
    due = rng.uniform(0.05, 0.8) + (rng.random() < 0.1)
    ignition_s = due * scene.duration_s
    if scenario == "cooking_fire":
        place_m = scene.draw_place(rng, lowest_m=0.7)
        add_forgotten_pan(rng, scene, place_m, ignition_s)
    else:
        place_m = scene.draw_place(rng)
        _add_activity(rng, scene, scenario)
    if scenario == "electrical":
        fires.add_overheating(rng, scene, place_m, ignition_s)
    fire = fires.draw_fire(rng, fires.KINDS[scenario], ignition_s)
    fires.add_fire(rng, scene, fire, place_m)
    return fire
