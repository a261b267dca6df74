"""Fires: how each kind begins, grows and ends, and what the camera and the room's air get of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.simulator.scene import Scene, Source
from ray_jobs.data.simulator.signals import Series, flicker, lag, log_uniform

Range = tuple[float, float]

# kW/s^2, reaching 1055 kW in 600, 300, 150 and 75 s (NFPA 72, Annex B; SFPE Handbook, "Design
# fires").
SLOW, MEDIUM, FAST, ULTRAFAST = 0.00293, 0.01172, 0.0469, 0.1876

CONVECTIVE_SHARE, RADIATIVE_SHARE = 0.7, 0.3  # of the heat release
FLAME_K, SMOKE_K = 800.0, 150.0  # above the air
SURFACE_WARM_UP_S = 90.0
SURFACE_W_M2K = 25.0  # heat transfer near a fire
SURFACE_LIMIT_K = 250.0


@dataclass(frozen=True, kw_only=True)
class FireKind:
    """What fires of one kind have in common; each draws its own from the ranges, log-uniformly."""

    incipient_s: Range  # before the growth with the square of time
    incipient_kw: Range
    growth_kw_s2: Range
    peak_kw: Range
    respiratory_quotient: Range  # mol CO2 / mol O2: cellulose 1, polymers and fats 0.7
    absorption_per_m: Range  # of the flame in the thermal infrared: sooty about 1, alcohol 0.3
    area_kw_m2: float  # heat release of a square metre of fuel
    fuel_c: Range  # surface of the burning fuel
    has_flames: bool = True


KINDS = {
    "flaming": FireKind(
        incipient_s=(5, 60),
        incipient_kw=(0.5, 3),
        growth_kw_s2=(SLOW, FAST),
        peak_kw=(6, 60),
        respiratory_quotient=(0.75, 1),
        absorption_per_m=(0.5, 1.2),
        area_kw_m2=500,
        fuel_c=(250, 450),
    ),
    "smouldering": FireKind(
        incipient_s=(5, 60),
        incipient_kw=(0.1, 0.6),
        growth_kw_s2=(SLOW / 150, SLOW / 10),
        peak_kw=(2, 12),
        respiratory_quotient=(0.6, 0.9),  # much of the carbon leaves as CO
        absorption_per_m=(0.3, 0.6),
        area_kw_m2=15,
        fuel_c=(130, 350),  # the glow is under the char
        has_flames=False,
    ),
    "electrical": FireKind(
        incipient_s=(10, 60),
        incipient_kw=(0.5, 3),
        growth_kw_s2=(SLOW, MEDIUM),
        peak_kw=(4, 30),
        respiratory_quotient=(0.65, 0.8),
        absorption_per_m=(0.6, 1.3),
        area_kw_m2=400,
        fuel_c=(200, 400),
    ),
    "chemical": FireKind(
        incipient_s=(2, 30),
        incipient_kw=(0.3, 3),
        growth_kw_s2=(FAST, ULTRAFAST),
        peak_kw=(8, 80),
        respiratory_quotient=(0.3, 0.7),
        absorption_per_m=(0.15, 0.7),
        area_kw_m2=900,
        fuel_c=(100, 300),  # a boiling pool
    ),
    "cooking_fire": FireKind(
        incipient_s=(5, 60),
        incipient_kw=(0.5, 4),
        growth_kw_s2=(MEDIUM, FAST),
        peak_kw=(8, 60),
        respiratory_quotient=(0.65, 0.75),
        absorption_per_m=(0.6, 1.2),
        area_kw_m2=700,
        fuel_c=(330, 380),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Fire:
    """One fire. Times in seconds on the scene's clock."""

    kind: FireKind
    ignition_s: float
    end_s: float  # put out, or starved
    incipient_s: float
    incipient_kw: float
    growth_kw_s2: float
    peak_kw: float

    def is_burning(self, time_s: Series) -> NDArray[np.bool_]:
        """The label: from ignition to the end."""
        return (time_s >= self.ignition_s) & (time_s < self.end_s)

    def heat_release_kw(self, time_s: Series) -> Series:
        """An incipient stage, growth with the square of time up to a peak, and a quick end.

        The t-squared curve counts from the end of the incipient stage, the "effective ignition" of
        NFPA 72, Annex B.
        """
        age_s = np.maximum(time_s - self.ignition_s, 0)
        growing_s = np.maximum(age_s - self.incipient_s, 0)
        early_kw = self.incipient_kw * np.minimum(0.2 + age_s / self.incipient_s, 1)
        power_kw = np.minimum(early_kw + self.growth_kw_s2 * growing_s**2, self.peak_kw)
        dying = np.exp(-np.maximum(time_s - self.end_s, 0) / 8.0)
        return np.where(time_s >= self.ignition_s, power_kw * dying, 0.0)


def draw_fire(rng: Generator, kind: FireKind, ignition_s: float) -> Fire:
    """A fire of a kind. One in six is put out, or starves, within minutes."""
    lasts_s = log_uniform(rng, 30, 400) if rng.random() < 1 / 6 else np.inf
    return Fire(
        kind=kind,
        ignition_s=ignition_s,
        end_s=ignition_s + lasts_s,
        incipient_s=log_uniform(rng, *kind.incipient_s),
        incipient_kw=log_uniform(rng, *kind.incipient_kw),
        growth_kw_s2=log_uniform(rng, *kind.growth_kw_s2),
        peak_kw=log_uniform(rng, *kind.peak_kw),
    )


def add_overheating(
    rng: Generator, scene: Scene, place_m: tuple[float, float], ignition_s: float
) -> None:
    """A socket, cable or battery that gets hot for minutes before it burns."""
    heated = np.clip(1 - (ignition_s - scene.time_s) / rng.uniform(60, 500), 0, 1)
    scene.sources.append(
        Source(
            x_m=place_m[0],
            y_m=place_m[1],
            half_width_m=rng.uniform(0.03, 0.12),
            half_height_m=rng.uniform(0.03, 0.12),
            excess_k=heated * rng.uniform(30, 150),
            opacity=rng.uniform(0.3, 0.95),
        )
    )


def add_fire(rng: Generator, scene: Scene, fire: Fire, place_m: tuple[float, float]) -> None:
    """Let a fire burn in a scene. Furniture may hide most of it from the camera."""
    kind, power_kw = fire.kind, fire.heat_release_kw(scene.time_s)
    share_seen = 1.0 if rng.random() < 0.75 else log_uniform(rng, 0.03, 0.7)
    # Part of the gas leaves with the hot layer under the ceiling and never reaches the sensor.
    scene.release(power_kw, log_uniform(rng, *kind.respiratory_quotient), rng.uniform(0.1, 0.75))
    _add_heated_surfaces(
        scene, power_kw if kind.has_flames else 0.3 * power_kw, place_m, share_seen
    )
    _add_fuel(rng, scene, fire, place_m, share_seen)
    if kind.has_flames:
        _add_flame(rng, scene, fire, place_m, share_seen)


def _add_heated_surfaces(
    scene: Scene, power_kw: Series, place_m: tuple[float, float], share_seen: float
) -> None:
    """The ceiling, warmed by the plume, and what stands half a metre away, warmed by radiation.

    Ceiling jet near the axis: 16.9 Q^(2/3) / H^(5/3) K (Alpert, Fire Technology 8, 1972).
    Radiation: the flame as a point (Modak, Fire Research 1, 1977).
    """
    x_m, y_m = place_m
    height_m = max(scene.room.height_m - y_m, 0.5)
    jet_k = 16.9 * (CONVECTIVE_SHARE * power_kw) ** (2 / 3) / height_m ** (5 / 3)
    flux_w_m2 = 1000 * RADIATIVE_SHARE * power_kw / (4 * np.pi * 0.5**2)
    for middle_m, half_width_m, half_height_m, settled_k, opacity in (
        (scene.room.height_m, 0.4 * height_m, 0.25, 0.6 * jet_k, 0.8),
        (y_m + 0.2, 0.5, 0.5, flux_w_m2 / SURFACE_W_M2K, 0.6 * share_seen**0.5),
    ):
        scene.sources.append(
            Source(
                x_m=x_m,
                y_m=middle_m,
                half_width_m=half_width_m,
                half_height_m=half_height_m,
                excess_k=lag(np.minimum(settled_k, SURFACE_LIMIT_K), SURFACE_WARM_UP_S),
                opacity=opacity,
                soft=True,
            )
        )


def _add_fuel(
    rng: Generator, scene: Scene, fire: Fire, place_m: tuple[float, float], share_seen: float
) -> None:
    """What burns, as far as the flames let it show; it stays hot for a while."""
    power_kw = fire.heat_release_kw(scene.time_s)
    hot_k = log_uniform(rng, *fire.kind.fuel_c) - scene.room.ambient_c
    radius_m = _diameter_m(fire, power_kw) / 2
    scene.sources.append(
        Source(
            x_m=place_m[0],
            y_m=place_m[1],
            half_width_m=np.maximum.accumulate(radius_m),
            half_height_m=np.maximum.accumulate(radius_m) * rng.uniform(0.3, 1),
            excess_k=lag(np.where(fire.is_burning(scene.time_s), hot_k, 0.0), 40.0),
            opacity=share_seen * rng.uniform(0.2, 0.9),
            soft=not fire.kind.has_flames,
        )
    )


def _add_flame(
    rng: Generator, scene: Scene, fire: Fire, place_m: tuple[float, float], share_seen: float
) -> None:
    """The flame and the sooty plume above it, which reach elsewhere at every reading.

    Length: 0.235 Q^(2/5) - 1.02 D (Heskestad, Fire Safety Journal 5, 1983). Emissivity: 1 -
    exp(-kappa D) (SFPE Handbook, "Radiation heat transfer"). Temperature: McCaffrey, NBSIR 79-1910
    (1979), continuous flame.
    """
    x_m, y_m = place_m
    power_kw = fire.heat_release_kw(scene.time_s) * flicker(rng, scene.num_readings, 0.25)
    diameter_m = _diameter_m(fire, power_kw)
    length_m = np.maximum(0.235 * power_kw**0.4 - 1.02 * diameter_m, 0.5 * diameter_m)
    emissivity = 1 - np.exp(-log_uniform(rng, *fire.kind.absorption_per_m) * diameter_m)
    sway_m = 0.15 * length_m * rng.standard_normal(scene.num_readings)
    scene.sources.append(
        Source(
            x_m=x_m + 0.5 * sway_m,
            y_m=y_m + 0.5 * length_m,
            half_width_m=0.6 * diameter_m,
            half_height_m=0.5 * length_m,
            excess_k=FLAME_K,
            opacity=share_seen * emissivity,
            soft=True,
        )
    )
    scene.sources.append(
        Source(
            x_m=x_m + sway_m,
            y_m=y_m + 1.3 * length_m,
            half_width_m=0.6 * diameter_m + 0.1 * length_m,
            half_height_m=0.7 * length_m,
            excess_k=SMOKE_K,
            opacity=0.5 * share_seen**0.5 * emissivity,
            soft=True,
        )
    )


def _diameter_m(fire: Fire, power_kw: Series) -> Series:
    """Of the fuel that releases that much heat."""
    return np.sqrt(4 * power_kw / (np.pi * fire.kind.area_kw_m2))
