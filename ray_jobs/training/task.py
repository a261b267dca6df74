"""NetworkTask: what a workload brings to the training of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.training.learning import BatchSource, Learning

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ray_jobs.training.batch import Batch
    from ray_jobs.training.spec import TrainSpec

_MAX_LOADER_PROCESSES = 8


def num_loader_processes(train: TrainSpec, num_cpus: int) -> int:
    """Processes that read samples for a worker with `num_cpus`, one of which is its own."""
    if train.num_loader_workers is not None:
        return train.num_loader_workers
    return min(num_cpus - 1, _MAX_LOADER_PROCESSES)


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

    # Preflight: each says in a few words what it found.

    @abstractmethod
    def check_labels(self) -> str:
        """Whether every sample has a label that the network can give.

        Raises:
            PreflightError: one has not.
        """

    @abstractmethod
    def check_transforms(self) -> str:
        """Whether what samples go through gives what the network takes; after `build`.

        Raises:
            PreflightError: it does not.
        """

    @abstractmethod
    def check_batch(self, batch: Batch) -> str:
        """Whether a batch is of the shape and type that the network takes, and finite.

        Raises:
            PreflightError: it is not.
        """

    @abstractmethod
    def check_output(self, output: Any, batch: Batch) -> None:
        """Whether the network gives what the task makes predictions of.

        Raises:
            PreflightError: it does not.
        """
