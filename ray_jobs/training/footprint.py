"""What the training of a network needs of memory and disk. Imports torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_jobs.checks import GIB, available_memory, counted, existing, in_gib
from ray_jobs.errors import PreflightError
from ray_jobs.storage import Storage

_NUM_CHECKPOINTS = 4  # two of the loop's, the best weights, one being written
_SPARE_DISK_BYTES = GIB  # for predictions, report and registered model


@dataclass(frozen=True)
class Footprint:
    """What a worker holds in the memory of its device while it trains."""

    fixed_bytes: float  # process, weights, gradients, optimizer: as large whatever the batch
    sample_bytes: float  # of each sample held at once
    micro_batch_size: int  # samples held at once

    @property
    def num_bytes(self) -> float:
        return self.fixed_bytes + self.sample_bytes * self.micro_batch_size


def find_memory(
    footprint: Footprint, *, available_bytes: float, less_memory: str, num_sharing: int = 1
) -> str:
    """Whether each of `num_sharing` workers finds its memory.

    Args:
        available_bytes: for all of them.
        less_memory: what a user can do where not even one sample fits.

    Raises:
        PreflightError: they do not.
    """
    share = available_bytes / num_sharing
    needs = "each worker needs" if num_sharing > 1 else "training needs"
    samples = counted(footprint.micro_batch_size, "sample")
    needed = f"{needs} about {in_gib(footprint.num_bytes)} with {samples} at once"
    available = f"{in_gib(share)} available" + (" for each" if num_sharing > 1 else "")
    if footprint.num_bytes <= share:
        return f"{needed}, of {available}"
    fitting = (share - footprint.fixed_bytes) / footprint.sample_bytes
    advice = advise_micro_batch(int(fitting), less_memory)
    raise PreflightError(f"{needed}, but there are {available}; {advice}")


def find_disk(storage: Storage, state_bytes: int) -> str:
    """Whether the storage has room for what a run writes.

    Args:
        state_bytes: of one checkpoint: weights and the optimizer's state.

    Raises:
        PreflightError: it has not.
    """
    needed = _NUM_CHECKPOINTS * state_bytes + _SPARE_DISK_BYTES
    if not storage.is_local:
        return f"about {in_gib(needed)} needed at {storage.uri}"
    place = existing(storage.local())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PreflightError(
            f"the run needs about {in_gib(needed)}, but {in_gib(free)} are free at {place}; make "
            "room, or set storage to another disk"
        )
    return f"about {in_gib(needed)} needed, {in_gib(free)} free at {place}"


def advise_micro_batch(size: int, less_memory: str) -> str:
    """What to do for so many samples to be held at once; if not even one fits, `less_memory`."""
    if size < 1:
        return less_memory
    return f"set train.micro_batch_size={size}: the batch stays the same"


def tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def free_memory(device: torch.device) -> int:
    """Bytes that a network can have on the device. MPS has its share of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def own_memory(device: torch.device) -> int:
    """Bytes of a process with PyTorch before it has a network, on the device."""
    if device.type == "cuda":
        return 0  # its context is in no count of what is free
    import psutil

    return psutil.Process().memory_info().rss
