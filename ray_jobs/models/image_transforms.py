"""From a picture to the tensor that a model takes: timm's transforms, sized by `ImageInput`.

PIL, torch and timm are imported in the functions, so that this module can be named anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.models.image_classifier import ImageInput
from ray_jobs.training.spec import AugmentationSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Transform = Callable[[Image], Tensor]

PROBE_SIZE = (480, 640)  # width, height in pixels: no model's own, and not square


def train_transform(image: ImageInput, augmentation: AugmentationSpec) -> Transform:
    """An RGB picture of any size -> float32 [3, image_size, image_size], augmented at random.

    Draws from `random`, `numpy.random` and torch's generator.

    Raises:
        SpecError: timm has no such auto_augment policy.
    """
    from timm.data import create_transform

    try:
        return create_transform(
            **_input_args(image),
            is_training=True,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            hflip=augmentation.horizontal_flip,
            vflip=augmentation.vertical_flip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.auto_augment,
            re_prob=augmentation.random_erasing,
            re_mode="pixel",  # noise, as timm's train.py does by default
        )
    except (AssertionError, ValueError) as error:
        if not augmentation.auto_augment:
            raise
        raise SpecError(
            f"train.augmentation.auto_augment={augmentation.auto_augment!r} is no policy of timm "
            f"({error}); write one like rand-m9-mstd0.5-inc1, or leave it out"
        ) from None


def eval_transform(image: ImageInput) -> Transform:
    """An RGB picture of any size -> float32 [3, image_size, image_size], the same every time."""
    from timm.data import create_transform

    return create_transform(
        **_input_args(image), crop_pct=image.crop_pct, crop_mode=image.crop_mode
    )


def check_output(transform: Transform, image: ImageInput) -> None:
    """Put a picture through a transform and compare what comes out with what the model takes.

    Raises:
        PreflightError: it is of another size or not of three channels.
    """
    from PIL.Image import new

    shape = tuple(transform(new("RGB", PROBE_SIZE)).shape)
    wanted = (3, image.image_size, image.image_size)
    if shape == wanted:
        return
    if shape[:-2] == wanted[:-2]:
        gives = f"{shape[-1]} x {shape[-2]} pixels, but model.image_size is {image.image_size}"
    else:
        gives = f"a tensor of shape {list(shape)}, but the model takes {list(wanted)}"
    raise PreflightError(
        f"the transform gives {gives}; make it with eval_transform or train_transform of this "
        "model's own input"
    )


def _input_args(image: ImageInput) -> dict[str, Any]:
    return {
        "input_size": (3, image.image_size, image.image_size),
        "interpolation": image.interpolation,
        "mean": image.mean,
        "std": image.std,
    }
