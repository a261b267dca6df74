"""A room and what goes on in it: the stage of activities and fires. Metres, kilowatts, litres."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from ray_jobs.data.features import INTERVAL_S
from ray_jobs.data.simulator.signals import Series, lag, log_uniform

FRAME_SHAPE = (24, 32)  # a Lepton 3.x (160 x 120), binned 5 x 5
FIELD_OF_VIEW_M = 1.09  # across, at a distance of 1 m: 57 degrees, a Lepton 3.5

# Burning gives 13.1 kJ per gram of oxygen, whatever the fuel (Huggett, Fire and Materials 4, 1980);
# a mole of oxygen is 32 g, a mole of gas at 20 degC 24.06 L. For a respiratory quotient of 1:
CO2_L_PER_KJ = 24.06 / (13.1 * 32.0)

SURFACE_LOSS_KW_M2K = 0.01  # natural convection and radiation of an indoor surface
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
    def view_height_m(self) -> float:
        """What the camera sees from bottom to top, where things happen."""
        return FRAME_SHAPE[0] / self.pixels_per_m

    @property
    def view_width_m(self) -> float:
        return FRAME_SHAPE[1] / self.pixels_per_m


def draw_room(rng: Generator) -> Room:
    """A room of a home or a small office, its camera 2 to 6 m away from what it watches.

    Air changes: 0.3/h is a tight home with closed windows, 3/h mechanical ventilation (ASHRAE
    Handbook of Fundamentals, "Ventilation and infiltration").
    """
    outdoor_co2_ppm = rng.normal(425, 10)
    return Room(
        floor_area_m2=log_uniform(rng, 10, 45),
        height_m=rng.uniform(2.4, 3.0),
        air_changes_per_h=log_uniform(rng, 0.3, 3),
        ambient_c=float(np.clip(rng.normal(21.5, 3), 12, 32)),
        outdoor_co2_ppm=outdoor_co2_ppm,
        initial_co2_ppm=outdoor_co2_ppm + min(rng.lognormal(np.log(180), 0.9), 2000),
        pixels_per_m=FRAME_SHAPE[1] / (FIELD_OF_VIEW_M * rng.uniform(2, 6)),
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that radiates: a patch of a surface, a body, a volume of flame.

    Each value is one number or one a reading, [T]. Positions are metres from the view's lower left
    corner.
    """

    x_m: Series | float
    y_m: Series | float
    half_width_m: Series | float
    half_height_m: Series | float
    excess_k: Series | float  # its temperature above the room's surfaces
    opacity: Series | float = 0.95  # emissivity, times the share of the sight lines that end in it
    soft: bool = False  # fades like a Gaussian, or ends at an edge


@dataclass
class Scene:
    """What activities and fires add up to over time. Later sources stand in front."""

    room: Room
    num_readings: int
    sources: list[Source] = field(default_factory=list)
    time_s: Series = field(init=False)
    ambient_c: Series = field(init=False)  # of the room's surfaces
    air_changes_per_h: Series = field(init=False)
    co2_l_s: Series = field(init=False)  # released into the air that the sensor breathes

    def __post_init__(self) -> None:
        self.time_s = np.arange(self.num_readings, dtype=np.float64) * INTERVAL_S
        self.ambient_c = np.full(self.num_readings, self.room.ambient_c, dtype=np.float64)
        self.air_changes_per_h = np.full_like(self.ambient_c, self.room.air_changes_per_h)
        self.co2_l_s = np.zeros_like(self.ambient_c)

    @property
    def duration_s(self) -> float:
        return self.num_readings * INTERVAL_S

    def release(
        self, power_kw: Series, respiratory_quotient: float = 0.0, lost_share: float = 0.0
    ) -> None:
        """Release heat and CO2; `lost_share` of both leaves with the hot gas.

        The respiratory quotient (mol CO2 / mol O2) is that of what burns or breathes, 0 for a
        current.
        """
        kept_kw = power_kw * (1 - lost_share)
        loss_kw_k = SURFACE_LOSS_KW_M2K * self.room.surface_m2
        self.ambient_c += lag(kept_kw, ROOM_TIME_CONSTANT_S) / loss_kw_k
        self.co2_l_s += kept_kw * respiratory_quotient * CO2_L_PER_KJ

    def draw_place(self, rng: Generator, *, lowest_m: float = 0.0) -> tuple[float, float]:
        """A place in view, x and y in metres: up to 1.2 m above `lowest_m`."""
        x_m = rng.uniform(0.08, 0.92) * self.room.view_width_m
        return x_m, min(lowest_m + rng.uniform(0.05, 1.2), 0.9 * self.room.view_height_m)
