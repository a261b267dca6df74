"""Drawn pictures: each class its own shape, texture and hue among clutter. No photographs."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ray_jobs.data.pool import map_unordered
from ray_jobs.storage import Storage

MIN_FOR_POOL = 256  # fewer are drawn before a process has started
JPEG_QUALITY = 92
GOLDEN_RATIO = 0.6180339887  # its multiples spread any number of hues evenly

Field = NDArray[np.float64]
Shape = Callable[[Field, Field], Field]  # of an object's own coordinates: below 0 is inside

SHAPES: tuple[Shape, ...] = (
    lambda u, v: np.hypot(u, v) - 1,  # disc
    lambda u, v: np.maximum(abs(u) - 0.6, abs(v) - 1),  # can
    lambda u, v: np.maximum(abs(u) - np.where(v < -0.3, 0.25, 0.6), abs(v) - 1.1),  # bottle
    lambda u, v: abs(np.hypot(u, v) - 0.75) - 0.28,  # ring
    lambda u, v: np.maximum(abs(u) - 0.5 * (v + 1), abs(v) - 0.9),  # wedge
    lambda u, v: np.maximum(abs(u) - 1.1, abs(v + 0.5 * u**2 - 0.2) - 0.3),  # bow
)
TEXTURES: tuple[Callable[[Field, Field], Field], ...] = (  # in -1..1
    lambda u, v: np.zeros_like(u),  # plain
    lambda u, v: np.sign(np.sin(9 * v)),  # bands
    lambda u, v: np.sign(np.sin(8 * u) * np.sin(8 * v)),  # checks
    lambda u, v: np.where(np.cos(10 * u) + np.cos(10 * v) > 0.9, 1.0, -0.4),  # dots
    lambda u, v: np.sin(14 * (u + v)),  # oblique ripples
)


def draw_picture(seed: int, label: int, index: int, size: int) -> Image.Image:
    """One RGB picture of a class, `size` px square; the same arguments give the same pixels."""
    rng = np.random.default_rng([seed, label, index])
    canvas = _background(rng, size)
    for _ in range(rng.integers(1, 4)):
        hue = rng.random()
        shape, texture = int(rng.integers(len(SHAPES))), int(rng.integers(len(TEXTURES)))
        _add_object(canvas, rng, shape, texture, hue, scale=rng.uniform(0.08, 0.18), spread=0.9)
    _add_object(
        canvas,
        rng,
        shape=label % len(SHAPES),
        texture=label // len(SHAPES) % len(TEXTURES),
        hue=GOLDEN_RATIO * label + rng.normal(0, 0.03),
        scale=rng.uniform(0.4, 0.65),
        spread=0.25,
    )
    canvas *= _light(rng, size)
    canvas += rng.normal(0, rng.uniform(0.01, 0.05), canvas.shape)  # the sensor's noise
    return Image.fromarray((np.clip(canvas, 0, 1) * 255).round().astype(np.uint8))


def draw_set(
    storage: Storage,
    folder: str,
    *,
    classes: Sequence[str],
    num_samples: int,
    size: int,
    seed: int,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Write `num_samples` pictures as `folder`/<class>/NNNN.jpg, equally many of each class.

    Args:
        size: side, px.
        num_workers: processes; it changes no pixel.
        progress: called with the pictures drawn so far and their number.

    Raises:
        OSError: the storage cannot be written.
        RetryableError: a worker was killed.
    """
    wanted = [(i % len(classes), i // len(classes)) for i in range(num_samples)]
    draw = functools.partial(_write_picture, storage.uri, folder, tuple(classes), size, seed)
    num_drawn = 0
    for _, done in map_unordered(draw, wanted, num_workers, min_for_pool=MIN_FOR_POOL):
        num_drawn += len(done)
        progress(num_drawn, num_samples)


def _write_picture(
    uri: str, folder: str, classes: tuple[str, ...], size: int, seed: int, wanted: tuple[int, int]
) -> None:
    label, index = wanted
    content = io.BytesIO()
    draw_picture(seed, label, index, size).save(content, "JPEG", quality=JPEG_QUALITY)
    path = f"{folder}/{classes[label]}/{index:04d}.jpg".lstrip("/")  # the root itself is ""
    _storage(uri).write_bytes(path, content.getvalue())


@functools.cache
def _storage(uri: str) -> Storage:
    return Storage(uri)


def _background(rng: Generator, size: int) -> Field:
    """Soft patches of a few colours. Shape [size, size, 3], 0..1."""
    patches = rng.uniform(0.25, 0.75, (1, 1, 3)) + rng.normal(0, 0.12, (5, 5, 3))
    small = Image.fromarray((np.clip(patches, 0, 1) * 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255


def _light(rng: Generator, size: int) -> Field:
    """Light from one side, warm or cold. Shape [size, size, 3], about 1."""
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.3) * (x * np.cos(angle) + y * np.sin(angle))
    return (rng.uniform(0.75, 1.2) * (1 + slope))[..., None] * rng.normal(1, 0.04, 3)


def _grid(size: int) -> tuple[Field, Field]:
    """x and y of each pixel's middle, -1..1."""
    ticks = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(ticks, ticks)
    return x, y


def _add_object(
    canvas: Field,
    rng: Generator,
    shape: int,
    texture: int,
    hue: float,
    *,
    scale: float,
    spread: float,
) -> None:
    """Draw an object over the canvas, in place, at a random place and angle.

    Args:
        canvas: shape [size, size, 3].
        scale: half its height, of half the picture.
        spread: how far from the middle it may lie.
    """
    size = len(canvas)
    x, y = _grid(size)
    x, y = x - rng.uniform(-spread, spread), y - rng.uniform(-spread, spread)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    u = (x * np.cos(angle) + y * np.sin(angle)) / scale * squeeze
    v = (y * np.cos(angle) - x * np.sin(angle)) / scale / squeeze
    cover = np.clip(0.5 - SHAPES[shape](u, v) * scale * size / 4, 0, 1)[..., None]  # soft edge
    light = 0.5 + 0.22 * TEXTURES[texture](u, v) + 0.12 * u
    canvas[:] = canvas * (1 - cover) + _colour(hue, rng.uniform(0.5, 0.9), light) * cover


def _colour(hue: float, saturation: float, light: Field) -> Field:
    """RGB of one hue at each lightness: from black over the hue to white. Shape [..., 3]."""
    phases = 2 * np.pi * (hue - np.array([0, 1 / 3, 2 / 3]))
    tint = saturation * 0.5 * np.cos(phases)
    return np.clip(light[..., None] + tint * (1 - abs(2 * light[..., None] - 1) * 0.5), 0, 1)
