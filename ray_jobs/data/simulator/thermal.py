"""From a scene to what a radiometric long-wave infrared camera reports, frames [T, 24, 32] in degC.

Radiances add, temperatures do not: a flame that fills a hundredth of a pixel lifts it by what its radiance adds. A
camera band about 10 um follows Planck's law at that wavelength closely, which is also the form of FLIR's own calibration
curve T = B / ln(R / S + F).
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.simulator.scene import FRAME_SHAPE, Scene, Source
from ray_jobs.data.simulator.signals import log_uniform

Frames = NDArray[np.float32]  # [T, 24, 32]

PLANCK_B_K = 14388.0 / 10.0  # second radiation constant (um K) over the wavelength (um)
KELVIN = 273.15
RANGE_C = (-10.0, 450.0)  # Lepton 3.5 in its low-gain state
SHUTTER_INTERVAL_S = 180.0  # between flat-field corrections
LN2 = np.float32(np.log(2))


def radiance(temperature_c: Frames) -> Frames:
    """Band radiance of a black body, in units that cancel."""
    return 1 / np.expm1(PLANCK_B_K / (temperature_c + np.float32(KELVIN)))


def temperature_c(band_radiance: Frames) -> Frames:
    """The temperature of a black body of that band radiance: what the camera takes a pixel for."""
    return PLANCK_B_K / np.log1p(1 / band_radiance) - np.float32(KELVIN)


def film(rng: Generator, scene: Scene) -> Frames:
    """The frames a camera records of a scene."""
    return expose(rng, scene, draw_radiance(scene, draw_backdrop(rng, scene)))


def draw_backdrop(rng: Generator, scene: Scene) -> Frames:
    """Surface temperatures of the empty room [T, 24, 32], degC: warmer above, and never quite even."""
    from scipy import ndimage

    rows, columns = FRAME_SHAPE
    texture = ndimage.gaussian_filter(rng.standard_normal(FRAME_SHAPE), rng.uniform(1, 4))
    texture *= log_uniform(rng, 0.2, 1.0) / texture.std()
    texture += np.linspace(rng.uniform(0, 2), 0, rows)[:, None]
    texture += np.linspace(-0.5, 0.5, columns) * rng.normal(0, 1)
    return (scene.ambient_c[:, None, None] + texture).astype(np.float32)


def draw_radiance(scene: Scene, backdrop_c: Frames) -> Frames:
    """Band radiance that reaches the camera: each source over what is behind it."""
    image = radiance(backdrop_c)
    rows, columns = (np.arange(size) + 0.5 for size in FRAME_SHAPE)
    scale = scene.room.pixels_per_m
    for source in scene.sources:
        down = FRAME_SHAPE[0] - _per_reading(source.y_m) * scale
        across = _per_reading(source.x_m) * scale
        vertical = _profile(rows, down, _per_reading(source.half_height_m) * scale, source.soft)
        horizontal = _profile(
            columns, across, _per_reading(source.half_width_m) * scale, source.soft
        )
        opaque = (_per_reading(source.opacity) * vertical)[:, :, None] * horizontal[:, None, :]
        own = radiance(_per_reading(source.temperature_c).astype(np.float32))[:, :, None]
        image += opaque * (own - image)
    return image


def expose(rng: Generator, scene: Scene, image: Frames) -> Frames:
    """What the camera makes of the radiance: emissivity, offset, drift between shutters, fixed pattern and noise.

    FLIR Lepton Engineering Datasheet (500-0659-00-09): radiometric accuracy 5 degC in the high-gain state and 10 degC
    in the low-gain one, thermal sensitivity below 50 mK before binning, a flat-field correction every 3 minutes.
    """
    emissivity = rng.uniform(0.9, 1.0)
    surroundings = radiance(scene.ambient_c.astype(np.float32))[:, None, None]
    frames = temperature_c(emissivity * image + (1 - emissivity) * surroundings)
    gain, offset_c = rng.normal(1, 0.015), rng.normal(0, 2)
    since_shutter_s = (scene.time_s + rng.uniform(0, SHUTTER_INTERVAL_S)) % SHUTTER_INTERVAL_S
    drift_c = rng.normal(0, 0.4) * since_shutter_s / SHUTTER_INTERVAL_S
    pattern_c = rng.normal(0, log_uniform(rng, 0.02, 0.15), FRAME_SHAPE).astype(np.float32)
    noise_c = np.float32(log_uniform(rng, 0.02, 0.12))
    frames *= np.float32(gain)
    frames += (offset_c + drift_c).astype(np.float32)[:, None, None] + pattern_c
    frames += noise_c * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames, *RANGE_C, out=frames)


def _per_reading(value: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """One number or one a reading, as a column [T or 1, 1]."""
    return np.atleast_1d(np.asarray(value, dtype=np.float64))[:, None]


def _profile(
    pixels: NDArray[np.float64], middle: NDArray[np.float64], half: NDArray[np.float64], soft: bool
) -> NDArray[np.float32]:
    """How much of each pixel's sight lines a source takes, along one axis [T or 1, pixels]: half of it at its edge.

    What is smaller than a pixel fills a share of one.
    """
    drawn = np.maximum(half, 0.5)
    squared = ((pixels - middle) / drawn) ** 2
    shape = np.exp(-LN2 * (squared if soft else squared**4))
    return (shape * (half / drawn)).astype(np.float32)
