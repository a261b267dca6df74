"""Batch: what one optimizer step learns from on one worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """Samples and their targets, by name; the sample is the first dimension of every tensor.

    A sample that could not be used is missing from the tensors and stands in `failed`.
    """

    tensors: dict[str, Tensor]
    ids: list[int]  # row ids, for the journal
    failed: dict[int, str] = field(default_factory=dict)  # row id -> why it was left out

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {name: part.to(device, non_blocking=True) for name, part in self.tensors.items()}
        return Batch(moved, self.ids, self.failed)

    def pin_memory(self) -> Batch:
        """Called by a DataLoader that pins."""
        pinned = {name: part.pin_memory() for name, part in self.tensors.items()}
        return Batch(pinned, self.ids, self.failed)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most `size` samples, as equal as can be: BatchNorm cannot
        learn from a single one."""
        if size >= len(self):
            yield self
            return
        size = -(-len(self) // -(-len(self) // size))
        for start in range(0, len(self), size):
            piece = slice(start, start + size)
            tensors = {name: part[piece] for name, part in self.tensors.items()}
            yield Batch(tensors, self.ids[piece])
