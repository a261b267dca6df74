"""A room and what goes on in it: the stage that activities and fires act on, in metres, kilowatts and litres."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.features import INTERVAL_S
from ray_jobs.data.simulator.signals import Series, lag, log_uniform

FRAME_SHAPE = (24, 32)  # a Lepton 3.x (160 x 120), binned 5 x 5

# Burning takes 1 g of oxygen per 13.1 kJ whatever the fuel (Huggett 1980); a mole of gas at 20 degC has 24.06 L.
CO2_L_PER_KJ = 24.06 / (13.1 * 32.0)  # for a respiratory quotient (mol CO2 / mol O2) of 1

SURFACE_LOSS_W_M2K = 10.0  # natural convection and radiation of an indoor surface
ROOM_TIME_CONSTANT_S = 900.0  # of the room's surfaces


@dataclass(frozen=True)
class Room:
    """One room, its ventilation, and the camera's view of it."""

    floor_area_m2: float
    height_m: float
    air_changes_per_h: float
    ambient_c: float
    outdoor_co2_ppm: float
    initial_co2_ppm: float
    pixels_per_m: float

    @property
    def volume_m3(self) -> float:
        return self.floor_area_m2 * self.height_m

    @property
    def surface_m2(self) -> float:
        """Floor, ceiling and the walls of a square room."""
        return 2 * self.floor_area_m2 + 4 * self.floor_area_m2**0.5 * self.height_m

    @property
    def view_m(self) -> tuple[float, float]:
        """Height and width of what the camera sees at the depth where things happen."""
        return FRAME_SHAPE[0] / self.pixels_per_m, FRAME_SHAPE[1] / self.pixels_per_m


def draw_room(rng: Generator) -> Room:
    """A room of a home or a small office.

    A Lepton 3.5 sees 57 degrees across, so that 32 pixels at d metres span 1.09 d metres. Air changes: 0.3/h is a tight
    home with closed windows, 3/h mechanical ventilation (ASHRAE Handbook of Fundamentals, ventilation and infiltration).
    """
    outdoor_co2_ppm = rng.normal(425, 10)
    return Room(
        floor_area_m2=log_uniform(rng, 10, 45),
        height_m=rng.uniform(2.4, 3.0),
        air_changes_per_h=log_uniform(rng, 0.3, 3),
        ambient_c=float(np.clip(rng.normal(21.5, 3), 12, 32)),
        outdoor_co2_ppm=outdoor_co2_ppm,
        initial_co2_ppm=outdoor_co2_ppm + min(rng.lognormal(np.log(180), 0.9), 2000),
        pixels_per_m=FRAME_SHAPE[1] / (1.09 * rng.uniform(2, 6)),
    )


@dataclass(frozen=True)
class Source:
    """Something that radiates: a patch of a surface, a body, a volume of flame.

    Positions in metres from the view's lower left corner; each value is one number or one a reading, [T]. `opacity` is
    the share of the sight lines through the middle that end in it (emissivity times coverage).
    """

    x_m: Series | float
    y_m: Series | float
    half_width_m: Series | float
    half_height_m: Series | float
    temperature_c: Series | float
    opacity: Series | float = 0.95
    soft: bool = False  # fades like a Gaussian, or ends at an edge


@dataclass
class Scene:
    """What activities and fires add up to over time. Sources are drawn in order, later ones in front."""

    room: Room
    time_s: Series
    sources: list[Source] = field(default_factory=list)
    ambient_c: Series = field(init=False)  # of the room's surfaces
    air_changes_per_h: Series = field(init=False)
    co2_l_s: Series = field(init=False)  # released into the air that the sensor breathes

    def __post_init__(self) -> None:
        self.ambient_c = np.full(len(self), self.room.ambient_c)
        self.air_changes_per_h = np.full(len(self), self.room.air_changes_per_h)
        self.co2_l_s = np.zeros(len(self))

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def duration_s(self) -> float:
        return len(self) * INTERVAL_S

    def release(
        self, power_kw: Series, respiratory_quotient: float = 0.0, captured: float = 0.0
    ) -> None:
        """Release heat and, where something is burnt or breathed, its CO2. `captured` leaves with the hot gas."""
        loss_kw_k = SURFACE_LOSS_W_M2K / 1000 * self.room.surface_m2
        warming = lag(np.r_[0.0, power_kw * (1 - captured) / loss_kw_k], ROOM_TIME_CONSTANT_S)
        self.ambient_c += warming[1:]
        self.co2_l_s += power_kw * (1 - captured) * respiratory_quotient * CO2_L_PER_KJ

    def since(self, start_s: float) -> NDArray[np.float64]:
        """Seconds since `start_s`, 0 before it."""
        return np.maximum(self.time_s - start_s, 0.0)

    def draw_position(self, rng: Generator, *, lowest_m: float = 0.0) -> tuple[float, float]:
        """A place in view, between a height and 1.2 m above it."""
        height_m, width_m = self.room.view_m
        return rng.uniform(0.08, 0.92) * width_m, min(
            lowest_m + rng.uniform(0.05, 1.2), 0.9 * height_m
        )
