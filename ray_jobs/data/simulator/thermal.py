"""From a scene to what a radiometric long-wave infrared camera reports, frames [T, 24, 32] in degC.

Radiances add, temperatures do not: a flame that fills a hundredth of a pixel lifts it by what its
radiance adds. A camera band about 10 um follows Planck's law at that wavelength closely, which is
also the form of FLIR's own calibration curve, T = B / ln(R / S + F).
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ray_jobs.data.simulator.scene import FRAME_SHAPE, Scene
from ray_jobs.data.simulator.signals import log_uniform

Frames = NDArray[np.float32]  # [T, 24, 32]
Column = NDArray[np.float64]  # [T, 1], or [1, 1] for a value that does not change

PLANCK_B_K = np.float32(14388.0 / 10.0)  # second radiation constant (um K) over the wavelength (um)
KELVIN = 273.15
RANGE_C = (-10.0, 450.0)  # Lepton 3.5, low-gain state
SHUTTER_INTERVAL_S = 180.0  # between flat-field corrections


def radiance(temperature_c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Band radiance of a black body, in units that cancel."""
    return 1 / np.expm1(PLANCK_B_K / (temperature_c + KELVIN))


def apparent_temperature(band_radiance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Temperature of a black body of that radiance, degC: what the camera takes a pixel for."""
    return np.subtract(PLANCK_B_K / np.log1p(1 / band_radiance), KELVIN)


def film(rng: Generator, scene: Scene) -> Frames:
    """The frames a camera records of a scene."""
    return expose(rng, scene, draw_radiance(scene, draw_backdrop(rng, scene)))


def draw_backdrop(rng: Generator, scene: Scene) -> Frames:
    """Surface temperatures of the empty room, degC: warmer above, and never quite even."""
    from scipy import ndimage

    texture_k = ndimage.gaussian_filter(rng.standard_normal(FRAME_SHAPE), rng.uniform(1, 4))
    texture_k *= log_uniform(rng, 0.2, 1.0) / texture_k.std()
    texture_k += np.linspace(rng.uniform(0, 2), 0, FRAME_SHAPE[0])[:, None]
    texture_k += np.linspace(-0.5, 0.5, FRAME_SHAPE[1]) * rng.normal(0, 1)
    return (scene.ambient_c[:, None, None] + texture_k).astype(np.float32)


def draw_radiance(scene: Scene, backdrop_c: Frames) -> Frames:
    """Band radiance that reaches the camera: each source over what is behind it."""
    image = radiance(backdrop_c)
    rows, columns = (np.arange(size) + 0.5 for size in FRAME_SHAPE)
    pixels = scene.room.pixels_per_m
    for source in scene.sources:
        down = FRAME_SHAPE[0] - _column(source.y_m) * pixels
        vertical = _profile(rows - down, _column(source.half_height_m) * pixels, source.soft)
        across = _column(source.x_m) * pixels
        horizontal = _profile(columns - across, _column(source.half_width_m) * pixels, source.soft)
        covered = (_column(source.opacity) * vertical).astype(np.float32)[:, :, None]
        covered = covered * horizontal.astype(np.float32)[:, None, :]
        own_c = _column(scene.ambient_c) + _column(source.excess_k)
        image += covered * (radiance(own_c.astype(np.float32))[:, :, None] - image)
    return image


def expose(rng: Generator, scene: Scene, image: Frames) -> Frames:
    """What the camera makes of the radiance, by its emissivity, offset, drift, pattern and noise.

    FLIR Lepton Engineering Datasheet (500-0659-00-09): radiometric accuracy 5 degC in the high-gain
    state and 10 degC in the low-gain one, thermal sensitivity below 50 mK before binning, a
    flat-field correction every 3 minutes.
    """
    emissivity = rng.uniform(0.9, 1.0)
    surroundings = radiance(scene.ambient_c.astype(np.float32))[:, None, None]
    frames = apparent_temperature(emissivity * image + (1 - emissivity) * surroundings)
    gain, offset_c = rng.normal(1, 0.015), rng.normal(0, 2)
    since_shutter = (scene.time_s / SHUTTER_INTERVAL_S + rng.random()) % 1
    drift_c = rng.normal(0, 0.4) * since_shutter
    pattern_c = rng.normal(0, log_uniform(rng, 0.02, 0.15), FRAME_SHAPE)
    noise_k = log_uniform(rng, 0.02, 0.12)
    frames *= gain
    frames += (offset_c + drift_c).astype(np.float32)[:, None, None]
    frames += pattern_c.astype(np.float32)
    frames += noise_k * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames, *RANGE_C, out=frames)


def _column(value: NDArray[np.float64] | float) -> Column:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))[:, None]


def _profile(offset: Column, half: Column, soft: bool) -> NDArray[np.float64]:
    """The share of each pixel that a source covers along one axis: half of it at its edge.

    Args:
        offset: pixels from the source's middle, [T, pixels].
        half: half its size, pixels. What is smaller than a pixel fills a share of one.
    """
    drawn = np.maximum(half, 0.5)
    squared = (offset / drawn) ** 2
    return np.exp2(-(squared if soft else np.square(np.square(squared)))) * (half / drawn)
