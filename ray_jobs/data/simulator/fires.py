"""Fires: how each kind begins, grows and ends, and what the camera and the room's air get of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.simulator.scene import Scene, Source
from ray_jobs.data.simulator.signals import Series, flicker, lag, log_uniform

Range = tuple[float, float]

# kW/s^2: 1055 kW are reached in 600, 300, 150 and 75 s (NFPA 72, annex B; SFPE Handbook, "Design fires").
SLOW, MEDIUM, FAST, ULTRAFAST = 0.00293, 0.01172, 0.0469, 0.1876

CONVECTIVE_SHARE, RADIATIVE_SHARE = 0.7, 0.3  # of the heat release
SURFACE_HEAT_TRANSFER_W_M2K = 25.0  # near a fire
SURFACE_WARM_UP_S = 90.0


@dataclass(frozen=True)
class FireKind:
    """What fires of one kind have in common; each fire draws its own from the ranges, log-uniformly."""

    growth_kw_s2: Range
    incipient_s: Range  # flames that do not grow yet, before the t-squared growth
    incipient_kw: Range
    peak_kw: Range
    respiratory_quotient: Range  # mol CO2 / mol O2: cellulose 1, polymers 0.7, alcohols and hydrocarbons 0.67
    absorption_per_m: Range  # of the flame in the thermal infrared: sooty 1 and more, alcohol 0.3
    area_kw_m2: float  # heat release of a square metre of fuel
    surface_c: Range  # of the burning fuel, where it shows
    flameless: bool = False


KINDS = {
    "flaming": FireKind(
        (SLOW, FAST), (5, 60), (0.5, 3), (6, 60), (0.75, 1), (0.5, 1.2), 500, (250, 450)
    ),
    "smouldering": FireKind(
        (2e-5, 3e-4), (5, 60), (0.1, 0.6), (2, 12), (0.6, 0.9), (0.3, 0.6), 15, (130, 350), True
    ),
    "electrical": FireKind(
        (SLOW, MEDIUM), (10, 60), (0.5, 3), (4, 30), (0.65, 0.8), (0.6, 1.3), 400, (200, 400)
    ),
    "chemical": FireKind(
        (FAST, ULTRAFAST), (2, 30), (0.3, 3), (8, 80), (0.3, 0.7), (0.15, 0.7), 900, (100, 300)
    ),
    "cooking": FireKind(
        (MEDIUM, FAST), (5, 60), (0.5, 4), (8, 60), (0.65, 0.75), (0.6, 1.2), 700, (330, 380)
    ),
}


@dataclass(frozen=True)
class Fire:
    """One fire. Times in seconds on the scene's clock."""

    kind: FireKind
    ignition_s: float
    end_s: float  # put out, or burnt out
    incipient_s: float
    incipient_kw: float
    growth_kw_s2: float
    peak_kw: float

    def is_burning(self, time_s: Series) -> NDArray[np.bool_]:
        """The label: from ignition to the end."""
        return (time_s >= self.ignition_s) & (time_s < self.end_s)

    def heat_release_kw(self, time_s: Series) -> Series:
        """An incipient stage, growth with the square of time up to a peak, and a quick end.

        The t-squared curve holds from the end of the incipient stage ("effective ignition time", SFPE Handbook).
        """
        age_s = np.maximum(time_s - self.ignition_s, 0)
        growing_s = np.maximum(age_s - self.incipient_s, 0)
        early_kw = self.incipient_kw * np.minimum(0.2 + age_s / self.incipient_s, 1)
        power_kw = np.minimum(early_kw + self.growth_kw_s2 * growing_s**2, self.peak_kw)
        dying = np.exp(-np.maximum(time_s - self.end_s, 0) / 8.0)
        return np.where(time_s >= self.ignition_s, power_kw * dying, 0.0)


def draw_fire(rng: Generator, kind: FireKind, ignition_s: float) -> Fire:
    """A fire of a kind. One in six is put out, or starves, within minutes."""
    short_lived = rng.random() < 1 / 6
    return Fire(
        kind,
        ignition_s,
        end_s=ignition_s + log_uniform(rng, 30, 400) if short_lived else np.inf,
        incipient_s=log_uniform(rng, *kind.incipient_s),
        incipient_kw=log_uniform(rng, *kind.incipient_kw),
        growth_kw_s2=log_uniform(rng, *kind.growth_kw_s2),
        peak_kw=log_uniform(rng, *kind.peak_kw),
    )


def add_fire(
    rng: Generator, scene: Scene, fire: Fire, place_m: tuple[float, float] | None = None
) -> None:
    """Let a fire burn in a scene, at a place or anywhere; furniture may hide part of it, or all but its gas."""
    kind = fire.kind
    x_m, y_m = place_m or scene.draw_position(rng)
    share_seen = 1.0 if rng.random() < 0.75 else log_uniform(rng, 0.03, 0.7)
    power_kw = fire.heat_release_kw(scene.time_s)
    jitter = flicker(rng, len(scene), 0.25)
    diameter_m = np.sqrt(4 * power_kw / (np.pi * kind.area_kw_m2))

    # Part of the gas leaves with the hot layer under the ceiling and never reaches the sensor.
    scene.release(power_kw, log_uniform(rng, *kind.respiratory_quotient), rng.uniform(0.1, 0.75))
    if kind.flameless:
        power_kw = power_kw * 0.3  # most of it stays in the bed

    _add_heated_surfaces(scene, power_kw, x_m, y_m, share_seen)
    fuel_c = lag(
        np.where(power_kw > 0, log_uniform(rng, *kind.surface_c), scene.room.ambient_c), 40.0
    )
    scene.sources.append(
        Source(
            x_m,
            y_m,
            diameter_m / 2,
            diameter_m / 2 * rng.uniform(0.3, 1),
            np.maximum(fuel_c, scene.ambient_c),
            opacity=share_seen * rng.uniform(0.2, 0.9),
            soft=kind.flameless,
        )
    )
    if not kind.flameless:
        _add_flame(rng, scene, fire, x_m, y_m, share_seen, power_kw * jitter)


def _add_flame(
    rng: Generator,
    scene: Scene,
    fire: Fire,
    x_m: float,
    y_m: float,
    share_seen: float,
    power_kw: Series,
) -> None:
    """The flame and the sooty plume above it.

    Height: Heskestad (1983), L = 0.235 Q^(2/5) - 1.02 D. Emissivity: 1 - exp(-kappa D) (SFPE Handbook, "Radiation heat
    transfer"). Temperature: 800 K above the air in the continuous flame (McCaffrey, NBSIR 79-1910, 1979).
    """
    diameter_m = np.sqrt(4 * power_kw / (np.pi * fire.kind.area_kw_m2))
    length_m = np.maximum(0.235 * power_kw**0.4 - 1.02 * diameter_m, 0.5 * diameter_m)
    absorption = log_uniform(rng, *fire.kind.absorption_per_m)
    emissivity = 1 - np.exp(-absorption * diameter_m)
    sway_m = 0.15 * length_m * rng.standard_normal(len(scene))
    scene.sources.append(
        Source(
            x_m + 0.5 * sway_m,
            y_m + length_m / 2,
            0.6 * diameter_m,
            length_m / 2,
            scene.ambient_c + 800,
            opacity=share_seen * emissivity,
            soft=True,
        )
    )
    scene.sources.append(
        Source(
            x_m + sway_m,
            y_m + 1.3 * length_m,
            0.6 * diameter_m + 0.1 * length_m,
            0.7 * length_m,
            scene.ambient_c + 150,
            opacity=0.5 * share_seen**0.5 * emissivity,
            soft=True,
        )
    )


def _add_heated_surfaces(
    scene: Scene, power_kw: Series, x_m: float, y_m: float, share_seen: float
) -> None:
    """The ceiling above, warmed by the plume, and what stands half a metre around, warmed by radiation.

    Ceiling jet: Alpert (1972), 16.9 Q^(2/3) / H^(5/3) K near the axis. Radiation: a point source, Modak (1977).
    """
    height_m = max(scene.room.height_m - y_m, 0.5)
    jet_k = 16.9 * (CONVECTIVE_SHARE * power_kw) ** (2 / 3) / height_m ** (5 / 3)
    scene.sources.append(
        Source(
            x_m,
            scene.room.height_m,
            0.4 * height_m,
            0.25,
            scene.ambient_c + lag(np.minimum(0.6 * jet_k, 250), SURFACE_WARM_UP_S),
            opacity=0.8,
            soft=True,
        )
    )
    flux_w_m2 = 1000 * RADIATIVE_SHARE * power_kw / (4 * np.pi * 0.5**2)
    warming_k = np.minimum(flux_w_m2 / SURFACE_HEAT_TRANSFER_W_M2K, 250)
    scene.sources.append(
        Source(
            x_m,
            y_m + 0.2,
            0.5,
            0.5,
            scene.ambient_c + lag(warming_k, SURFACE_WARM_UP_S),
            opacity=0.6 * share_seen**0.5,
            soft=True,
        )
    )


def add_overheating(
    rng: Generator, scene: Scene, place_m: tuple[float, float], until_s: float
) -> None:
    """A socket, cable or battery that gets hot for minutes before it burns, if it does."""
    progress = np.clip(1 - (until_s - scene.time_s) / rng.uniform(60, 500), 0, 1)
    scene.sources.append(
        Source(
            *place_m,
            rng.uniform(0.03, 0.12),
            rng.uniform(0.03, 0.12),
            scene.ambient_c + progress * rng.uniform(30, 150),
            opacity=rng.uniform(0.3, 0.95),
        )
    )
