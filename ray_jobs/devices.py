"""Which device a job trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_jobs.errors import PreflightError

if TYPE_CHECKING:
    import torch


def choose_device(asked: str) -> torch.device:
    """The device asked for, or with "auto" the best that is there: CUDA, MPS, CPU.

    Raises:
        PreflightError: the device asked for is not there.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[asked]:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise PreflightError(
            f"resources.device={asked}, but this machine has only: {found}; set "
            "resources.device=auto, or install PyTorch and a driver for it"
        )
    return torch.device(asked)
