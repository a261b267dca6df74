"""What goes on in a room without a fire: each function adds one activity to a scene."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ray_jobs.data.features import INTERVAL_S
from ray_jobs.data.simulator.scene import Scene, Source
from ray_jobs.data.simulator.signals import Series, flicker, lag, log_uniform, wander

METABOLIC_KW = 0.1  # of a person at light work; with the quotient below 0.0049 L/s of CO2
METABOLIC_QUOTIENT = 0.85  # mol CO2 / mol O2 (Persily & de Jonge, Indoor Air 27, 2017)
NATURAL_GAS_QUOTIENT = 0.5  # CH4 + 2 O2
GAS_FLAME_C = 1000.0


def add_clutter(rng: Generator, scene: Scene) -> None:
    """What any room has: windows, lamps, screens, appliances, pipes."""
    height_m, width_m = scene.room.view_m
    if rng.random() < 0.4:
        scene.sources.append(
            Source(
                rng.uniform(0, width_m),
                rng.uniform(0.5, 0.9) * height_m,
                rng.uniform(0.3, 0.8),
                rng.uniform(0.3, 0.7),
                scene.ambient_c + rng.normal(-2, 3),
                opacity=0.8,
            )
        )
    for _ in range(rng.integers(0, 4)):
        x_m, y_m = scene.draw_position(rng, lowest_m=rng.uniform(0, 1))
        scene.sources.append(
            Source(
                x_m,
                y_m,
                log_uniform(rng, 0.02, 0.3),
                log_uniform(rng, 0.02, 0.25),
                scene.ambient_c + log_uniform(rng, 3, 40) * _switching(rng, scene, 120.0),
                opacity=rng.uniform(0.5, 0.95),
            )
        )


def add_people(rng: Generator, scene: Scene, num_people: int) -> None:
    """People who stand, walk on, come and go; out of view they still breathe."""
    for _ in range(num_people):
        present = _interval(rng, scene, always=0.6)
        height_m = rng.uniform(1.2, 1.8)  # sitting or standing
        scene.release(METABOLIC_KW * rng.uniform(0.8, 1.5) * present, METABOLIC_QUOTIENT)
        scene.sources.append(
            Source(
                _walk(rng, scene),
                height_m / 2 + wander(rng, len(scene), 0.02, 10),
                rng.uniform(0.17, 0.28),
                height_m / 2,
                np.maximum(scene.ambient_c + 1, rng.normal(29.5, 1.5)),
                opacity=0.93 * present,
            )
        )


def add_cooking(
    rng: Generator, scene: Scene, *, forgotten_until_s: float | None = None
) -> tuple[float, float]:
    """Cook on a hob, electric or gas; returns the pan's place, metres.

    With `forgotten_until_s` nobody turns the heat down, and the oil nears its autoignition at about 360 degC then
    (Babrauskas, Ignition Handbook, 2003, cooking oils). Otherwise the cook stays in command, flambes and sears included.
    """
    x_m, y_m = scene.draw_position(rng, lowest_m=0.7)
    pan_m = rng.uniform(0.09, 0.16)
    start_s = rng.uniform(-300, 0.5 * scene.duration_s)
    cooking = _interval(rng, scene, always=0.7) * (scene.time_s >= start_s)
    power_kw = rng.uniform(0.7, 2.5) * cooking * _switching(rng, scene, 40.0)
    is_gas = rng.random() < 0.5
    if rng.random() < 0.5:  # extractor hood
        captured = rng.uniform(0.3, 0.8)
        scene.air_changes_per_h += rng.uniform(1, 5) * (scene.time_s > start_s)
    else:
        captured = 0.0
    target_c = rng.choice([100.0, rng.uniform(140, 230), rng.uniform(200, 300)], p=[0.4, 0.4, 0.2])
    pan_c = lag(scene.ambient_c + (target_c - scene.ambient_c) * cooking, rng.uniform(60, 180))
    if start_s < 0:  # hot already
        pan_c = lag(np.where(cooking > 0, target_c, scene.ambient_c), rng.uniform(60, 180))
    if forgotten_until_s is not None:
        heating_s = rng.uniform(120, 400)
        progress = np.clip(1 - (forgotten_until_s - scene.time_s) / heating_s, 0, 1)
        pan_c = np.maximum(pan_c, scene.ambient_c + progress * (360 - scene.ambient_c))
        power_kw = np.maximum(power_kw, 1.8 * (progress > 0) * (progress < 1))
    scene.release(power_kw, NATURAL_GAS_QUOTIENT if is_gas else 0.0, captured)
    if is_gas:
        scene.sources.append(
            Source(
                x_m,
                y_m - 0.04,
                pan_m,
                0.03,
                GAS_FLAME_C,
                opacity=0.04 * power_kw * flicker(rng, len(scene), 0.15),
                soft=True,
            )
        )
    visible = rng.uniform(0.3, 0.95)  # a bright steel pan shows its surroundings instead
    scene.sources.append(Source(x_m, y_m, pan_m, rng.uniform(0.03, 0.08), pan_c, opacity=visible))
    steam_c = np.minimum(scene.ambient_c + 0.45 * (pan_c - scene.ambient_c), 90)
    scene.sources.append(
        Source(
            x_m + wander(rng, len(scene), 0.06, 8),
            y_m + 0.25,
            0.12,
            0.25 * flicker(rng, len(scene), 0.2),
            steam_c,
            opacity=np.clip(rng.uniform(0.05, 0.35) * flicker(rng, len(scene), 0.4), 0, 0.8),
            soft=True,
        )
    )
    if rng.random() < 0.4 and forgotten_until_s is None:
        _add_flare(rng, scene, x_m, y_m, cooking)
    return x_m, y_m


def add_heater(rng: Generator, scene: Scene) -> tuple[float, float]:
    """A radiator, an electric element, a gas cabinet heater or a stove with a glass door; returns its place, metres."""
    kind = rng.choice(["radiator", "element", "gas", "stove"], p=[0.35, 0.3, 0.15, 0.2])
    x_m, y_m = scene.draw_position(rng)
    running = _interval(rng, scene, always=0.4)
    if kind == "element":
        running = running * _switching(rng, scene, 90.0)  # thermostat
    surface_c, half_m, warm_up_s, power_kw = {
        "radiator": (rng.uniform(45, 75), rng.uniform(0.25, 0.6), 400.0, 1.2),
        "element": (rng.uniform(150, 450), rng.uniform(0.08, 0.2), 45.0, 1.8),
        "gas": (rng.uniform(250, 450), rng.uniform(0.1, 0.18), 90.0, rng.uniform(1.5, 4)),
        "stove": (rng.uniform(120, 300), rng.uniform(0.15, 0.25), 500.0, rng.uniform(3, 7)),
    }[kind]
    above_c = lag(np.r_[running[0], running], warm_up_s)[1:] * (surface_c - scene.room.ambient_c)
    if kind == "stove":  # the flames behind the glass
        above_c = above_c * flicker(rng, len(scene), 0.12)
    is_vented = kind == "stove"
    scene.release(
        power_kw * running, 0.6 if kind == "gas" else 0.0, captured=0.8 if is_vented else 0.0
    )
    scene.sources.append(
        Source(
            x_m,
            y_m,
            half_m,
            half_m * rng.uniform(0.5, 1),
            scene.ambient_c + above_c,
            opacity=rng.uniform(0.5, 0.95) if kind == "radiator" else rng.uniform(0.15, 0.7),
        )
    )
    scene.sources.append(  # the wall behind it and the air above it
        Source(x_m, y_m + 0.3, half_m * 1.5, 0.6, scene.ambient_c + above_c * 0.1, 0.6, soft=True)
    )
    return x_m, y_m


def add_sunlight(rng: Generator, scene: Scene) -> None:
    """A patch of sun that wanders over a wall, with clouds. A dark wall gains up to 25 K."""
    height_m, width_m = scene.room.view_m
    sun = np.clip(0.6 + wander(rng, len(scene), 0.5, log_uniform(rng, 60, 600)), 0, 1)
    scene.sources.append(
        Source(
            rng.uniform(0.1, 0.9) * width_m + scene.time_s * rng.normal(0, 0.0003),
            rng.uniform(0.2, 0.8) * height_m,
            log_uniform(rng, 0.2, 1.0),
            log_uniform(rng, 0.2, 0.8),
            scene.ambient_c + lag(sun, rng.uniform(40, 200)) * rng.uniform(6, 28),
        )
    )


def add_ventilation_change(rng: Generator, scene: Scene) -> None:
    """A window or a fan that opens, or shuts, and the cold draught that comes with it."""
    at_s = rng.uniform(0.1, 0.8) * scene.duration_s
    airing = (scene.time_s >= at_s) if rng.random() < 0.6 else (scene.time_s < at_s)
    scene.air_changes_per_h += airing * log_uniform(rng, 3, 20)
    cooling_c = lag(airing.astype(float), 240.0) * rng.uniform(0, 5)
    scene.ambient_c -= 0.3 * cooling_c
    height_m, width_m = scene.room.view_m
    scene.sources.append(
        Source(
            rng.uniform(0, width_m),
            rng.uniform(0.1, 0.8) * height_m,
            rng.uniform(0.4, 1.0),
            rng.uniform(0.4, 1.0),
            scene.ambient_c - 2 * cooling_c,
            opacity=0.8,
            soft=True,
        )
    )


def _add_flare(rng: Generator, scene: Scene, x_m: float, y_m: float, cooking: Series) -> None:
    """Flames in the pan for some seconds: a flambe, a splash of fat."""
    at_s = rng.uniform(0, scene.duration_s)
    burning = cooking * ((scene.time_s >= at_s) & (scene.time_s < at_s + rng.uniform(5, 40)))
    power_kw = log_uniform(rng, 1, 8) * burning * flicker(rng, len(scene), 0.3)
    scene.release(power_kw, 0.7)
    scene.sources.append(
        Source(
            x_m,
            y_m + 0.15,
            0.1,
            0.1 + 0.04 * power_kw,
            GAS_FLAME_C,
            opacity=0.06 * burning * flicker(rng, len(scene), 0.3),
            soft=True,
        )
    )


def _interval(rng: Generator, scene: Scene, *, always: float) -> Series:
    """1 while something goes on: throughout with probability `always`, else from a time on, or until one."""
    if rng.random() < always:
        return np.ones(len(scene))
    at_s = rng.uniform(0.1, 0.9) * scene.duration_s
    started = scene.time_s >= at_s
    return np.asarray(started if rng.random() < 0.5 else ~started, dtype=np.float64)


def _switching(rng: Generator, scene: Scene, mean_s: float) -> Series:
    """Steady, or switched on and off as a thermostat does: 0 or 1."""
    if rng.random() < 0.5:
        return np.ones(len(scene))
    period_s, share_on = mean_s * rng.uniform(0.7, 3), rng.uniform(0.3, 0.9)
    return ((scene.time_s / period_s + rng.random()) % 1 < share_on).astype(np.float64)


def _walk(rng: Generator, scene: Scene) -> Series:
    """Where somebody stands, metres from the left: a while here, a while there, some of it out of view."""
    width_m = scene.room.view_m[1]
    moves = np.cumsum(rng.random(len(scene)) < log_uniform(rng, 0.01, 0.2))
    stops = rng.uniform(-0.15, 1.15, moves[-1] + 1) * width_m
    return lag(stops[moves], INTERVAL_S) + wander(rng, len(scene), 0.05, 15)
