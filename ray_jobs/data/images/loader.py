"""Pictures as batches for training and scoring. Imports torch: for the code that trains.

The order of an epoch comes from the seed and the epoch alone, the augmentation of a picture from
its place in that order, whatever the number of workers and loader processes: a run can be taken up
at any batch, and a picture drawn twice is augmented in two ways. The loader reads ahead over the
end of an epoch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ray_jobs.data.images.decode import BadPicture, decode
from ray_jobs.data.images.manifest import PictureRows, read_bytes
from ray_jobs.storage import outage
from ray_jobs.training.batch import Batch

Transform = Callable[[Image], Tensor]


class _Place(NamedTuple):
    epoch: int
    number: int  # in the epoch's order
    position: int  # of the picture, in its rows


@dataclass(frozen=True)
class _Sample:
    row_id: int
    label: int
    image: Tensor | None
    failure: str = ""


@dataclass(frozen=True)
class Pictures(Dataset[_Sample]):
    """The pictures of a split, decoded and transformed when they are asked for.

    Args:
        image_size: pixels a side that the transform must give.
        seed: of the augmentation; None for a transform that draws nothing.
    """

    rows: PictureRows
    transform: Transform
    image_size: int
    max_pixels: int
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: _Place) -> _Sample:
        position = place.position
        row_id, label = int(self.rows.row_id[position]), int(self.rows.label[position])
        try:
            image, _ = decode(read_bytes(self.rows.path[position]), max_pixels=self.max_pixels)
        except BadPicture as error:
            return _Sample(row_id, label, None, error.reason)
        except OSError as error:
            told = outage(self.rows.path[position], error)
            if told is not None:  # it says nothing of the picture
                raise told from None
            return _Sample(row_id, label, None, f"unreadable: {type(error).__name__}")
        if self.seed is not None:
            _seed_all(self.seed, place.epoch, place.number)
        tensor = self.transform(image)
        wanted = (3, self.image_size, self.image_size)
        if tuple(tensor.shape) != wanted:
            return _Sample(row_id, label, None, f"shape {list(tensor.shape)}, not {list(wanted)}")
        return _Sample(row_id, label, tensor)


def _seed_all(*place: int) -> None:
    """Transforms draw from all three generators of the process."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _collate(samples: Sequence[_Sample]) -> Batch:
    """Tensors `image` [n, 3, H, W] and `label` [n] of the pictures that could be read."""
    good = [sample for sample in samples if sample.image is not None]
    failed = {sample.row_id: sample.failure for sample in samples if sample.image is None}
    if not good:
        return Batch({}, [], failed)
    images = torch.stack([sample.image for sample in good if sample.image is not None])
    labels = torch.tensor([sample.label for sample in good])
    return Batch({"image": images, "label": labels}, [sample.row_id for sample in good], failed)


def _loader(
    pictures: Pictures, places: Any, num_processes: int, *, pin_memory: bool
) -> DataLoader[_Sample]:
    return DataLoader(
        pictures,
        batch_sampler=places,
        collate_fn=_collate,
        num_workers=num_processes,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        persistent_workers=num_processes > 0,
        multiprocessing_context=_process_context() if num_processes else None,
    )


def _process_context() -> Any:
    """Forks of a server that has imported this module and runs no threads, as Ray's workers do."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def start_process_server() -> None:
    """Let the server that loader processes are forked from begin its imports, which take seconds,
    while the network is built."""
    _process_context()
    forkserver.ensure_running()


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


@dataclass
class TrainingBatches:
    """This worker's part of every training batch; a `BatchSource` of the loop.

    Args:
        batch_size: pictures of a whole batch, over all workers.
        weights: how likely each picture is drawn, with replacement; None: each once an epoch.
    """

    pictures: Pictures
    batch_size: int
    seed: int
    epochs: int
    rank: int = 0
    world_size: int = 1
    num_processes: int = 0
    weights: Sequence[float] | None = None
    pin_memory: bool = False
    _batches: Iterator[Batch] = field(init=False, default=iter(()))
    _next: tuple[int, int] = field(init=False, default=(0, 0))  # epoch and batch, of `_batches`

    @property
    def num_batches(self) -> int:
        """Batches an epoch. What is left over of a whole one waits for another epoch's order."""
        return max(1, len(self.pictures) // self.batch_size)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch (from 1), from number `start` (from 0) on."""
        if self._next != (epoch, start):
            places = _Places(self, epoch, start)
            self._batches = iter(
                _loader(self.pictures, places, self.num_processes, pin_memory=self.pin_memory)
            )
        for number in range(start, self.num_batches):
            batch = next(self._batches)
            is_last = number + 1 == self.num_batches
            self._next = (epoch + 1, 0) if is_last else (epoch, number + 1)
            yield batch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Positions of the pictures in the order of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            return rng.permutation(len(self.pictures))
        share = np.asarray(self.weights) / np.sum(self.weights)
        return rng.choice(len(self.pictures), len(self.pictures), p=share)


@dataclass(frozen=True)
class _Places:
    """For a DataLoader: the places of each batch from a point in training to its end."""

    batches: TrainingBatches
    epoch: int
    start: int

    def __iter__(self) -> Iterator[list[_Place]]:
        source = self.batches
        for epoch in range(self.epoch, source.epochs + 1):
            order = source.order(epoch)
            first = self.start if epoch == self.epoch else 0
            for number in range(first, source.num_batches):
                start = number * source.batch_size
                drawn = enumerate(order[start : start + source.batch_size], start)
                batch = [_Place(epoch, place, int(position)) for place, position in drawn]
                yield batch[source.rank :: source.world_size]


def scoring_batches(
    pictures: Pictures,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_processes: int = 0,
    pin_memory: bool = False,
) -> DataLoader[_Sample]:
    """This worker's pictures, every `world_size`-th, in the order of their rows."""
    mine = range(rank, len(pictures), world_size)
    places = [
        [_Place(0, position, position) for position in mine[start : start + batch_size]]
        for start in range(0, len(mine), batch_size)
    ]
    return _loader(pictures, places, num_processes, pin_memory=pin_memory)
