"""Windows of sensor rows as batches for training and scoring. Imports torch: for the code that
trains. The rows are in memory, so nothing is read ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.windows import Windows
from ray_jobs.gcode_metrics import GcodeLines
from ray_jobs.training.batch import Batch


@dataclass(frozen=True)
class WindowBatches:
    """This worker's part of every training batch; a `BatchSource` of the loop.

    The order of an epoch comes from the seed and the epoch alone.

    Args:
        batch_size: windows of a whole batch, over all workers.
    """

    windows: Windows
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def num_batches(self) -> int:
        """Batches an epoch. What is left over of a whole one waits for another epoch's order."""
        return max(1, len(self.windows) // self.batch_size)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch (from 1), from number `start` (from 0) on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.windows))
        for number in range(start, self.num_batches):
            whole = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield make_batch(self.windows, whole[self.rank :: self.world_size])


def make_batch(windows: Windows, index: NDArray[np.int64]) -> Batch:
    """Tensors `x` and `mask` [B, T, F], `command` [B], `param_type` and `param_value` [B, P], whose
    values are 0 where not set; and as `row_...` those of every row, [B, T] and [B, T, P]."""
    x, mask = windows.batch(index)
    row_command, row_value = windows.row_targets(index)
    arrays = {
        "x": x,
        "mask": mask,
        "command": windows.command[index],
        "param_type": windows.param_type[index],
        "param_value": np.nan_to_num(windows.param_value[index], nan=0.0).astype(np.float32),
        "row_command": row_command,
        "row_param_type": ~np.isnan(row_value),
        "row_param_value": np.nan_to_num(row_value, nan=0.0).astype(np.float32),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(tensors, windows.row_id[index].tolist())


def lines_of(windows: Windows) -> GcodeLines:
    """The true lines of windows."""
    return GcodeLines(windows.command, windows.param_type, windows.param_value)
