"""NetworkTask: what a workload brings to the training of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.training.loop import BatchSource, Learning

if TYPE_CHECKING:
    import torch
    from torch import nn


class NetworkTask(ABC):
    """A network, the batches it learns from, its loss, and how well it does on validation.

    One is made in every worker; `torch.distributed` is set up if there are several.
    """

    device: torch.device
    notes: list[str]  # what the result should say

    @abstractmethod
    def build(self, *, weights: bool) -> nn.Module:
        """The network, untrained or pretrained, on the CPU.

        Args:
            weights: False: a checkpoint will be loaded, nothing needs to be downloaded.
        """

    @abstractmethod
    def prepare(self, network: nn.Module) -> tuple[BatchSource, Learning]:
        """What the loop needs to train `network`, which is on its device."""

    @abstractmethod
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Validation metrics, `val_loss` and the objective among them; the same on all workers."""

    @abstractmethod
    def predict(self, network: nn.Module, split: str) -> Any:
        """What the network says of a split, with `write(storage, path)`."""

    @abstractmethod
    def write(self, network: nn.Module, folder: Path) -> None:
        """Write the trained network so that it can be loaded with nothing but this folder."""
