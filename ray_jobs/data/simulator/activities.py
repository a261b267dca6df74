"""What goes on in a room without a fire: each function adds one activity to a scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ray_jobs.data.features import INTERVAL_S
from ray_jobs.data.simulator.scene import Scene, Source
from ray_jobs.data.simulator.signals import Series, flicker, lag, log_uniform, wander

METABOLIC_KW = 0.1  # of a person at light work; with the quotient below 0.0049 L/s of CO2
METABOLIC_QUOTIENT = 0.85  # mol CO2 / mol O2 (Persily & de Jonge, Indoor Air 27, 2017)
METHANE_QUOTIENT, PROPANE_QUOTIENT = 0.5, 0.6
GAS_FLAME_K = 1000.0
OIL_AUTOIGNITION_C = 360.0  # cooking oils (Babrauskas, Ignition Handbook, 2003)


def add_clutter(rng: Generator, scene: Scene) -> None:
    """What any room has: a window perhaps, lamps, screens, appliances, pipes."""
    if rng.random() < 0.4:
        scene.sources.append(
            Source(
                x_m=rng.uniform(0, scene.room.view_width_m),
                y_m=rng.uniform(0.5, 0.9) * scene.room.view_height_m,
                half_width_m=rng.uniform(0.3, 0.8),
                half_height_m=rng.uniform(0.3, 0.7),
                excess_k=rng.normal(-2, 3),
                opacity=0.8,
            )
        )
    for _ in range(rng.integers(0, 4)):
        x_m, y_m = scene.draw_place(rng, lowest_m=rng.uniform(0, 1))
        scene.sources.append(
            Source(
                x_m=x_m,
                y_m=y_m,
                half_width_m=log_uniform(rng, 0.02, 0.3),
                half_height_m=log_uniform(rng, 0.02, 0.25),
                excess_k=log_uniform(rng, 3, 40) * _switching(rng, scene, period_s=200),
                opacity=rng.uniform(0.5, 0.95),
            )
        )


def add_people(rng: Generator, scene: Scene, num_people: int) -> None:
    """People who stand, walk on, come and go; out of view they still breathe."""
    for _ in range(num_people):
        present = _while_on(rng, scene, throughout=0.6)
        scene.release(METABOLIC_KW * rng.uniform(0.8, 1.5) * present, METABOLIC_QUOTIENT)
        x_m, height_m = _walk(rng, scene), rng.uniform(1.2, 1.8)  # sitting or standing
        clothes_k = max(rng.normal(29, 1.5) - scene.room.ambient_c, 1.0)
        for middle_m, half_width_m, half_height_m, excess_k in (
            (0.43 * height_m, rng.uniform(0.17, 0.28), 0.43 * height_m, clothes_k),
            (height_m - 0.13, 0.08, 0.12, clothes_k + rng.uniform(2, 4)),
        ):
            scene.sources.append(
                Source(
                    x_m=x_m,
                    y_m=middle_m,
                    half_width_m=half_width_m,
                    half_height_m=half_height_m,
                    excess_k=excess_k,
                    opacity=0.95 * present,
                )
            )


def add_guests(rng: Generator, scene: Scene) -> None:
    add_people(rng, scene, int(rng.integers(2, 7)))


def add_cooking(rng: Generator, scene: Scene) -> None:
    """Cook on a hob, electric or gas, from a simmer to a sear, now and then with a flambe."""
    cooking = _while_on(rng, scene, throughout=0.7)
    cooking *= scene.time_s >= rng.uniform(-300, 0.5 * scene.duration_s)
    target_c = rng.choice([100.0, rng.uniform(140, 230), rng.uniform(200, 300)], p=[0.4, 0.4, 0.2])
    pan_k = lag(cooking, rng.uniform(60, 180)) * (target_c - scene.room.ambient_c)
    power_kw = rng.uniform(0.7, 2.5) * cooking * _switching(rng, scene, period_s=70)
    place_m = scene.draw_place(rng, lowest_m=0.7)
    _add_hob(rng, scene, place_m, pan_k, power_kw)
    if rng.random() < 0.4:
        _add_flambe(rng, scene, place_m, cooking)


def add_forgotten_pan(
    rng: Generator, scene: Scene, place_m: tuple[float, float], ignition_s: float
) -> None:
    """A pan that nobody turns down, until its oil ignites."""
    heating_s = rng.uniform(120, 700)
    heated = np.clip(1 - (ignition_s - scene.time_s) / heating_s, 0, 1)
    pan_k = heated**0.7 * (OIL_AUTOIGNITION_C - scene.room.ambient_c)  # losses grow as it warms
    power_kw = np.where((heated > 0) & (heated < 1), rng.uniform(1.2, 2.5), 0.0)
    _add_hob(rng, scene, place_m, pan_k, power_kw)


def add_heater(rng: Generator, scene: Scene) -> None:
    """A radiator, an electric element, a gas heater, or a stove with flames behind its glass."""
    heater = HEATERS[rng.choice(list(HEATERS), p=[0.35, 0.3, 0.15, 0.2])]
    x_m, y_m = scene.draw_place(rng)
    half_m = rng.uniform(*heater.half_width_m)
    running = _while_on(rng, scene, throughout=0.4)
    if heater.has_thermostat:
        running *= _switching(rng, scene, period_s=160)
    scene.release(
        rng.uniform(*heater.power_kw) * running, heater.respiratory_quotient, heater.lost_share
    )
    excess_k = lag(running, heater.warm_up_s) * (
        rng.uniform(*heater.surface_c) - scene.room.ambient_c
    )
    excess_k *= flicker(rng, scene.num_readings, heater.flicker)
    scene.sources.append(
        Source(
            x_m=x_m,
            y_m=y_m,
            half_width_m=half_m,
            half_height_m=half_m * rng.uniform(0.5, 1),
            excess_k=excess_k,
            opacity=rng.uniform(*heater.opacity),
        )
    )
    scene.sources.append(  # the wall behind and above
        Source(
            x_m=x_m,
            y_m=y_m + 0.3,
            half_width_m=1.5 * half_m,
            half_height_m=0.6,
            excess_k=0.1 * excess_k,
            opacity=0.6,
            soft=True,
        )
    )


def add_sunlight(rng: Generator, scene: Scene) -> None:
    """A patch of sun that creeps over a wall, with clouds. A dark wall gains up to 28 K."""
    sun = np.clip(0.6 + wander(rng, scene.num_readings, 0.5, log_uniform(rng, 60, 600)), 0, 1)
    start_m = rng.uniform(0.1, 0.9) * scene.room.view_width_m
    scene.sources.append(
        Source(
            x_m=start_m + scene.time_s * rng.normal(0, 0.0003),
            y_m=rng.uniform(0.2, 0.8) * scene.room.view_height_m,
            half_width_m=log_uniform(rng, 0.2, 1.0),
            half_height_m=log_uniform(rng, 0.2, 0.8),
            excess_k=rng.uniform(6, 28) * lag(sun, rng.uniform(40, 200)),
        )
    )


def add_ventilation_change(rng: Generator, scene: Scene) -> None:
    """A window or a fan that opens, or shuts, and the cold draught that comes with it."""
    changes_s = rng.uniform(0.1, 0.8) * scene.duration_s
    opens = rng.random() < 0.6
    is_open = ((scene.time_s >= changes_s) == opens).astype(np.float64)
    scene.air_changes_per_h += is_open * log_uniform(rng, 3, 20)
    cooling_k = lag(is_open, 240.0) * rng.uniform(0, 5)
    scene.ambient_c -= 0.3 * cooling_k
    scene.sources.append(
        Source(
            x_m=rng.uniform(0, scene.room.view_width_m),
            y_m=rng.uniform(0.1, 0.8) * scene.room.view_height_m,
            half_width_m=rng.uniform(0.4, 1.0),
            half_height_m=rng.uniform(0.4, 1.0),
            excess_k=-2 * cooling_k,
            opacity=0.8,
            soft=True,
        )
    )


def _add_nothing(_rng: Generator, _scene: Scene) -> None:
    pass


ACTIVITIES: dict[str, Callable[[Generator, Scene], None]] = {
    "quiet": _add_nothing,
    "people": add_guests,
    "cooking": add_cooking,
    "heater": add_heater,
    "sunlight": add_sunlight,
    "ventilation": add_ventilation_change,
}


@dataclass(frozen=True, kw_only=True)
class Heater:
    """A kind of heater; ranges are drawn from uniformly."""

    surface_c: tuple[float, float]
    half_width_m: tuple[float, float]
    warm_up_s: float
    power_kw: tuple[float, float]
    opacity: tuple[float, float]
    respiratory_quotient: float = 0.0  # of what it burns in the room's air
    lost_share: float = 0.0  # of its heat, up a chimney
    flicker: float = 0.0
    has_thermostat: bool = False


HEATERS = {
    "radiator": Heater(
        surface_c=(45, 75),
        half_width_m=(0.25, 0.6),
        warm_up_s=400,
        power_kw=(0.8, 1.6),
        opacity=(0.5, 0.95),
    ),
    "element": Heater(
        surface_c=(150, 450),
        half_width_m=(0.08, 0.2),
        warm_up_s=45,
        power_kw=(1.5, 2.2),
        opacity=(0.15, 0.7),
        has_thermostat=True,
    ),
    "gas": Heater(
        surface_c=(250, 450),
        half_width_m=(0.1, 0.18),
        warm_up_s=90,
        power_kw=(1.5, 4),
        opacity=(0.15, 0.7),
        respiratory_quotient=PROPANE_QUOTIENT,
    ),
    "stove": Heater(
        surface_c=(120, 300),
        half_width_m=(0.15, 0.25),
        warm_up_s=500,
        power_kw=(3, 7),
        opacity=(0.15, 0.7),
        lost_share=0.8,
        flicker=0.12,
    ),
}


def _add_hob(
    rng: Generator, scene: Scene, place_m: tuple[float, float], pan_k: Series, power_kw: Series
) -> None:
    """A pan, the steam above it, and what it stands on: a gas flame or a plate."""
    x_m, y_m = place_m
    num_readings, pan_m = scene.num_readings, rng.uniform(0.09, 0.16)
    has_gas, has_hood = rng.random(2) < 0.5
    if has_hood:
        scene.air_changes_per_h += rng.uniform(1, 5) * (pan_k > 0)
    scene.release(
        power_kw,
        METHANE_QUOTIENT if has_gas else 0.0,
        lost_share=rng.uniform(0.3, 0.8) if has_hood else 0.0,
    )
    if has_gas:
        scene.sources.append(
            Source(
                x_m=x_m,
                y_m=y_m - 0.04,
                half_width_m=pan_m,
                half_height_m=0.03,
                excess_k=GAS_FLAME_K,
                opacity=0.04 * power_kw * flicker(rng, num_readings, 0.15),
                soft=True,
            )
        )
    scene.sources.append(
        Source(
            x_m=x_m,
            y_m=y_m,
            half_width_m=pan_m,
            half_height_m=rng.uniform(0.03, 0.08),
            excess_k=pan_k,
            opacity=rng.uniform(0.3, 0.95),  # bright steel shows its surroundings instead
        )
    )
    scene.sources.append(
        Source(
            x_m=x_m + wander(rng, num_readings, 0.06, 8),
            y_m=y_m + 0.25,
            half_width_m=0.12,
            half_height_m=0.25 * flicker(rng, num_readings, 0.2),
            excess_k=np.minimum(0.45 * pan_k, 65),
            opacity=np.minimum(rng.uniform(0.05, 0.35) * flicker(rng, num_readings, 0.4), 0.8),
            soft=True,
        )
    )


def _add_flambe(
    rng: Generator, scene: Scene, place_m: tuple[float, float], cooking: Series
) -> None:
    """Flames in the pan for some seconds, and meant to be there."""
    starts_s = rng.uniform(0, scene.duration_s)
    age_s = scene.time_s - starts_s
    burning = cooking * ((age_s >= 0) & (age_s < rng.uniform(5, 40)))
    power_kw = log_uniform(rng, 1, 8) * burning * flicker(rng, scene.num_readings, 0.3)
    scene.release(power_kw, 0.7)
    scene.sources.append(
        Source(
            x_m=place_m[0],
            y_m=place_m[1] + 0.15,
            half_width_m=0.1,
            half_height_m=0.1 + 0.04 * power_kw,
            excess_k=GAS_FLAME_K,
            opacity=0.06 * burning * flicker(rng, scene.num_readings, 0.3),
            soft=True,
        )
    )


def _while_on(rng: Generator, scene: Scene, *, throughout: float) -> Series:
    """1 while something goes on: all along, with a probability, or from a time on, or until one."""
    changes_s = rng.uniform(0.1, 0.9) * scene.duration_s
    begins, is_throughout = rng.random() < 0.5, rng.random() < throughout
    return (is_throughout | ((scene.time_s >= changes_s) == begins)).astype(np.float64)


def _switching(rng: Generator, scene: Scene, *, period_s: float) -> Series:
    """1 all along, or 1 and 0 in turn, as a thermostat switches."""
    period_s *= rng.uniform(0.5, 2)
    phase = (scene.time_s / period_s + rng.random()) % 1
    return ((rng.random() < 0.5) | (phase < rng.uniform(0.3, 0.9))).astype(np.float64)


def _walk(rng: Generator, scene: Scene) -> Series:
    """Where somebody is, metres from the left: here a while, there a while, or out of view."""
    moves = np.cumsum(rng.random(scene.num_readings) < log_uniform(rng, 0.01, 0.2))
    stops_m = rng.uniform(-0.15, 1.15, moves[-1] + 1) * scene.room.view_width_m
    return lag(stops_m[moves], INTERVAL_S) + wander(rng, scene.num_readings, 0.05, 15)
