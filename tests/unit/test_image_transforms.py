from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.models.image_classifier import ImageInput
from ray_jobs.models.image_transforms import check_output, eval_transform, train_transform
from ray_jobs.training.spec import AugmentationSpec

INPUT = ImageInput(
    image_size=48,
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
    interpolation="bicubic",
    crop_pct=0.9,
)
TIMM = {  # the same in timm's words
    "input_size": (3, 48, 48),
    "interpolation": "bicubic",
    "mean": (0.48, 0.46, 0.41),
    "std": (0.27, 0.26, 0.28),
}


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(transform: Callable[[Image.Image], Tensor], seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(picture())


@pytest.mark.parametrize(
    ("augmentation", "timms"),
    [
        ({}, {}),
        (
            {"scale": (0.5, 0.9), "ratio": (1.0, 1.0), "color_jitter": 0.1},
            {"scale": (0.5, 0.9), "ratio": (1.0, 1.0), "color_jitter": 0.1},
        ),
        (
            {"horizontal_flip": 0.0, "vertical_flip": 1.0, "random_erasing": 1.0},
            {"hflip": 0.0, "vflip": 1.0, "re_prob": 1.0, "re_mode": "pixel"},
        ),
        (
            {"auto_augment": "rand-m9-mstd0.5-inc1"},
            {"auto_augment": "rand-m9-mstd0.5-inc1"},
        ),
    ],
)
def test_training_pictures_are_timms(
    augmentation: dict[str, object], timms: dict[str, object]
) -> None:
    ours = train_transform(INPUT, AugmentationSpec.model_validate(augmentation))
    theirs = create_transform(**TIMM, is_training=True, **timms)  # type: ignore[arg-type]
    for seed in range(5):
        assert torch.equal(seeded(ours, seed), seeded(theirs, seed))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_evaluation_pictures_are_timms(crop_mode: str) -> None:
    ours = eval_transform(dataclasses.replace(INPUT, crop_mode=crop_mode))
    theirs = create_transform(**TIMM, crop_pct=0.9, crop_mode=crop_mode)  # type: ignore[arg-type]
    assert torch.equal(ours(picture()), theirs(picture()))
    assert torch.equal(seeded(ours, 0), seeded(ours, 1))


def test_pictures_are_standardized() -> None:
    gray = Image.new("RGB", (90, 60), (128, 128, 128))
    output = eval_transform(INPUT)(gray)
    expected = (128 / 255 - torch.tensor(INPUT.mean)) / torch.tensor(INPUT.std)
    assert torch.allclose(output.mean((1, 2)), expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 120), height=st.integers(1, 120), size=st.integers(16, 64))
def test_any_picture_comes_out_at_the_models_size(width: int, height: int, size: int) -> None:
    image = dataclasses.replace(INPUT, image_size=size)
    for transform in (eval_transform(image), train_transform(image, AugmentationSpec())):
        output = transform(picture(width, height))
        assert output.shape == (3, size, size)
        assert output.dtype == torch.float32
        assert output.isfinite().all()


@pytest.mark.parametrize("augmentation", [{}, {"auto_augment": "rand-m9", "random_erasing": 0.5}])
def test_transforms_go_to_loader_processes(augmentation: dict[str, object]) -> None:
    transform = train_transform(INPUT, AugmentationSpec.model_validate(augmentation))
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(seeded(copy, 3), seeded(transform, 3))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(SpecError) as raised:
        train_transform(INPUT, AugmentationSpec(auto_augment="bogus"))
    assert str(raised.value) == (
        "train.augmentation.auto_augment='bogus' is no policy of timm (Unknown AA policy bogus); "
        "write one like rand-m9-mstd0.5-inc1, or leave it out"
    )


def test_a_transform_of_the_model_passes_the_check() -> None:
    check_output(eval_transform(INPUT), INPUT)
    check_output(train_transform(INPUT, AugmentationSpec()), INPUT)


def test_a_transform_of_another_size_is_refused() -> None:
    large = dataclasses.replace(INPUT, image_size=448)
    with pytest.raises(PreflightError) as raised:
        check_output(eval_transform(large), dataclasses.replace(INPUT, image_size=224))
    assert str(raised.value) == (
        "the transform gives 448 x 448 pixels, but model.image_size is 224; make it with "
        "eval_transform or train_transform of this model's own input"
    )


def test_a_transform_that_keeps_the_pictures_shape_is_refused() -> None:
    from torchvision.transforms import v2

    def keep_shape(image: Image.Image) -> Tensor:
        return v2.functional.to_dtype(v2.functional.pil_to_tensor(v2.functional.resize(image, 48)))

    with pytest.raises(PreflightError, match=r"gives 48 x 64 pixels, but model.image_size is 48;"):
        check_output(keep_shape, INPUT)
    with pytest.raises(
        PreflightError,
        match=r"gives a tensor of shape \[1, 48, 48\], but the model takes \[3, 48, 48\];",
    ):
        check_output(lambda image: torch.zeros(1, 48, 48), INPUT)
