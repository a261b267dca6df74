"""Pictures as batches: the order, what is left out, and being taken up at any batch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ray_jobs.data.images.loader import Pictures, TrainingBatches, scoring_batches
from ray_jobs.data.images.manifest import PictureRows
from ray_jobs.errors import JobFailed
from ray_jobs.models.image_classifier import ImageInput
from ray_jobs.models.image_transforms import eval_transform, train_transform
from ray_jobs.training.batch import Batch
from ray_jobs.training.spec import AugmentationSpec, CheckpointSpec
from tests import toy_training as toy

SIZE = 16
INPUT = ImageInput(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0)


def picture_rows(folder: Path, num: int) -> PictureRows:
    """Pictures of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(num):
        level = 80 if i % 2 else 170
        pixels = rng.integers(level - 60, level + 60, (24, 20, 3)).astype(np.uint8)
        path = folder / f"{i:03d}.jpg"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    index = np.arange(num)
    return PictureRows(1000 + index, paths, index % 2, index)


def training(rows: PictureRows, **changes: object) -> TrainingBatches:
    pictures = Pictures(rows, train_transform(INPUT, AugmentationSpec()), SIZE, 10_000, seed=4)
    settings: dict = {"batch_size": 4, "seed": 4, "epochs": 3, **changes}
    return TrainingBatches(pictures, **settings)


def same(one: Batch, other: Batch) -> bool:
    return one.ids == other.ids and torch.equal(one.tensors["image"], other.tensors["image"])


def test_an_epoch_has_each_picture_once_and_drops_what_is_left_over(tmp_path: Path) -> None:
    batches = training(picture_rows(tmp_path, 10))
    assert batches.num_batches == 2
    ids = [row for batch in batches.epoch(1, 0) for row in batch.ids]
    assert len(ids) == len(set(ids)) == 8
    assert [row for batch in batches.epoch(2, 0) for row in batch.ids] != ids


@pytest.mark.parametrize("num_processes", [0, 1])
def test_it_goes_on_at_any_batch_with_the_same_pixels(tmp_path: Path, num_processes: int) -> None:
    rows = picture_rows(tmp_path, 9)
    whole = training(rows)
    every = [(e, k, b) for e in (1, 2, 3) for k, b in enumerate(whole.epoch(e, 0))]
    resumed = training(rows, num_processes=num_processes)
    tail = [*resumed.epoch(2, 1), *resumed.epoch(3, 0)]
    expected = [batch for e, k, batch in every if (e, k) >= (2, 1)]
    assert len(tail) == len(expected) == 3
    assert all(same(a, b) for a, b in zip(tail, expected, strict=True))


def test_two_workers_share_each_batch(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 8)
    (alone, _) = training(rows).epoch(1, 0)
    halves = [next(training(rows, rank=r, world_size=2).epoch(1, 0)).ids for r in (0, 1)]
    assert sorted(halves[0] + halves[1]) == sorted(alone.ids)
    assert len(halves[0]) == len(halves[1]) == 2


def test_a_balanced_sampler_draws_rare_classes_as_often(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 40)
    rare = np.where(np.arange(40) < 4, 1, 0)
    weights = [1 / 4 if label else 1 / 36 for label in rare]
    drawn = np.concatenate([training(rows, weights=weights).order(epoch) for epoch in range(50)])
    assert 0.45 < rare[drawn].mean() < 0.55


def augmented(rows: PictureRows, *starts: tuple[int, int], **changes: object) -> list[str]:
    """Each picture that is drawn, as a digest, from each of the epochs and batches on."""
    source = training(rows, weights=[1.0] + [1e-9] * (len(rows) - 1), **changes)  # the first alone
    batches = [batch for epoch, start in starts for batch in source.epoch(epoch, start)]
    assert {row for batch in batches for row in batch.ids} == {1000}
    images = [image for batch in batches for image in batch.tensors["image"]]
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def test_a_picture_drawn_again_is_augmented_anew(tmp_path: Path) -> None:
    drawn = augmented(picture_rows(tmp_path, 12), (1, 0), (2, 0))
    assert len(drawn) == len(set(drawn)) == 24


@pytest.mark.parametrize("num_processes", [0, 1])
def test_each_drawing_is_the_same_after_a_restart_and_on_any_number_of_workers(
    tmp_path: Path, num_processes: int
) -> None:
    rows = picture_rows(tmp_path, 12)
    whole = augmented(rows, (1, 0), (2, 0))
    assert augmented(rows, (1, 2), (2, 0), num_processes=num_processes) == whole[8:]
    two = [augmented(rows, (1, 0), (2, 0), rank=rank, world_size=2) for rank in (0, 1)]
    assert [two[0], two[1]] == [whole[0::2], whole[1::2]]


def test_pictures_that_fail_are_left_out_with_a_reason(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 6)
    content = Path(rows.path[1]).read_bytes()
    Path(rows.path[1]).write_bytes(content[: len(content) // 2])
    Path(rows.path[2]).unlink()
    Image.new("RGB", (200, 100)).save(rows.path[3])  # beyond max_pixels
    (batch,) = scoring_batches(Pictures(rows, eval_transform(INPUT), SIZE, 10_000), 6)
    assert batch.ids == [1000, 1004, 1005]
    assert batch.tensors["image"].shape == (3, 3, SIZE, SIZE)
    assert batch.failed == {
        1001: "truncated",
        1002: "unreadable: FileNotFoundError",
        1003: "too-large",
    }


def test_a_transform_of_another_size_fails_the_picture(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 1)
    (batch,) = scoring_batches(Pictures(rows, eval_transform(INPUT), 32, 10_000), 1)
    assert len(batch) == 0
    assert batch.failed == {1000: "shape [3, 16, 16], not [3, 32, 32]"}


def test_scoring_is_in_the_order_of_the_rows_and_shared(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 7)
    pictures = Pictures(rows, eval_transform(INPUT), SIZE, 10_000)
    parts = [
        [row for batch in scoring_batches(pictures, 2, rank=r, world_size=2) for row in batch.ids]
        for r in (0, 1)
    ]
    assert parts == [[1000, 1002, 1004, 1006], [1001, 1003, 1005]]


@pytest.mark.parametrize(("share", "says"), [(0.01, None), (0.10, "warning"), (0.30, "stop")])
def test_poisoned_pictures(tmp_path: Path, share: float, says: str | None) -> None:
    """Spoilt after the scan: under 5 % is healthy, to 20 % a warning, above that the end."""
    num = 200
    rows = picture_rows(tmp_path, num)
    for i in range(round(num * share)):
        buffer = io.BytesIO()
        Image.new("RGB", (24, 20)).save(buffer, "JPEG")
        Path(rows.path[i]).write_bytes(buffer.getvalue()[:100])
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = model(batch.tensors["image"])
        return nn.functional.cross_entropy(logits, batch.tensors["label"]), []

    learning = toy.learning(
        network, loss=loss, metrics=(), epochs=2, batch_size=10, checkpoint=CheckpointSpec()
    )
    context, events = toy.context()
    batches = training(rows, batch_size=10, epochs=2)
    arguments = (network, batches, learning, lambda model: {"val_loss": 1.0}, context)
    if says == "stop":
        with pytest.raises(JobFailed, match=r"samples could not be used \(\d+%, more than train\."):
            toy.loop.fit(*arguments)
        return
    report = toy.loop.fit(*arguments)
    assert report.num_failed_samples == 2 * round(num * share)
    assert sum(len(event["ids"]) for event in events if event["event"] == "left_out") == (
        report.num_failed_samples
    )
    assert bool(report.warnings) == (says == "warning")
    if says:
        assert report.warnings[0].startswith("40 of 400 samples could not be used and were left")
