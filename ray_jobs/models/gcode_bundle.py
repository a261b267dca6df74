"""GcodeBundle: a trained decoder of G-code as one folder that predicts, and nothing in it is a
pickle.

    bundle.json             workload, architecture, features and their scale, commands, sha256 of
                            the weights
    weights.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.windows import Frame
from ray_jobs.gcode_metrics import GcodeLines
from ray_jobs.models.bundle_files import read_network, write_network
from ray_jobs.models.gcode_spec import GcodeModelSpec

if TYPE_CHECKING:
    from torch import nn

    from ray_jobs.models.gcode_network import GcodeNetwork

WORKLOAD = "gcode"
_AT_ONCE = 256  # windows


class GcodeBundle:
    """A loaded decoder."""

    def __init__(self, network: GcodeNetwork, frame: Frame):
        self.network, self.frame = network, frame

    def decode(self, rows: NDArray[np.float64]) -> GcodeLines:
        """The lines in force at the rows of one run, from the first that ends a whole window on.

        Args:
            rows: [R, F] in time order, in the features' own units; NaN where not measured.

        Returns:
            Of R - T + 1 rows.

        Raises:
            ValueError: there are fewer rows than a window has.
        """
        self.check_length(rows)
        (lines,) = self.decode_runs([rows])
        return lines

    def check_length(self, rows: NDArray[np.float64]) -> None:
        """Whether the rows of a run have a window to decode.

        Raises:
            ValueError: there are fewer rows than a window has.
        """
        window = self.frame.window
        if len(rows) < window:
            raise ValueError(
                f"a window has {window} rows, but there are {len(rows)}; give at least {window} "
                "rows of one run, in time order"
            )

    def decode_runs(self, runs: Sequence[NDArray[np.float64]]) -> list[GcodeLines]:
        """As `decode`, of several runs, each long enough: their windows share the network's
        batches."""
        import torch

        window = self.frame.window
        x, mask = (torch.from_numpy(part) for part in self.frame.scaled(np.concatenate(runs)))
        starts = np.cumsum([0, *map(len, runs)])
        ends = np.concatenate(
            [np.arange(start + window - 1, end) for start, end in pairwise(starts.tolist())]
        )
        commands, types, values = [], [], []
        with torch.inference_mode():
            for start in range(0, len(ends), _AT_ONCE):
                part = ends[start : start + _AT_ONCE, None] + np.arange(1 - window, 1)
                heads = self.network(x[part], mask[part])
                commands.append(heads.command.argmax(dim=1))
                types.append(heads.param_type > 0)
                values.append(self.network.param_value.decode(heads.param_value))
        heads_of_all = [torch.cat(parts).numpy() for parts in (commands, types, values)]
        cuts = np.cumsum([len(rows) - window + 1 for rows in runs])[:-1]
        return [
            GcodeLines(*lines)
            for lines in zip(*(np.split(head, cuts) for head in heads_of_all), strict=True)
        ]


def write_gcode_bundle(
    folder: Path, network: nn.Module, spec: GcodeModelSpec, frame: Frame
) -> None:
    """Write a bundle into an existing folder."""
    about = {
        "workload": WORKLOAD,
        "model": spec.model_dump(mode="json"),
        "frame": frame.model_dump(mode="json"),
        "learns_weights": "log_variance" in network.state_dict(),
    }
    write_network(folder, network, about)


def load_gcode_bundle(folder: Path) -> GcodeBundle:
    """Check the weights' digest, then load.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    from ray_jobs.models.gcode_network import GcodeNetwork

    index, weights = read_network(folder)
    frame = Frame.model_validate(index["frame"])
    network = GcodeNetwork(
        GcodeModelSpec.model_validate(index["model"]),
        num_features=len(frame.features),
        num_commands=len(frame.commands),
        window=frame.window,
        learns_weights=index["learns_weights"],
    )
    network.load_state_dict(weights)
    network.eval()
    return GcodeBundle(network, frame)
