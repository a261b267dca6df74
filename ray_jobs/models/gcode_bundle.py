"""GcodeBundle: a trained decoder of G-code as one folder that predicts, and nothing in it is a
pickle.

    bundle.json             architecture, features and their scale, commands, sha256 of the weights
    weights.safetensors
"""

from __future__ import annotations

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
        import torch

        window = self.frame.window
        if len(rows) < window:
            raise ValueError(
                f"a window has {window} rows, but there are {len(rows)}; give at least {window} "
                "rows of one run, in time order"
            )
        x, mask = (torch.from_numpy(part) for part in self.frame.scaled(rows))
        ends = np.arange(window - 1, len(rows))
        commands, types, values = [], [], []
        with torch.inference_mode():
            for start in range(0, len(ends), _AT_ONCE):
                part = ends[start : start + _AT_ONCE, None] + np.arange(1 - window, 1)
                heads = self.network(x[part], mask[part])
                commands.append(heads.command.argmax(dim=1))
                types.append(heads.param_type > 0)
                values.append(self.network.param_value.decode(heads.param_value))
        return GcodeLines(*(torch.cat(parts).numpy() for parts in (commands, types, values)))


def write_gcode_bundle(
    folder: Path, network: nn.Module, spec: GcodeModelSpec, frame: Frame
) -> None:
    """Write a bundle into an existing folder."""
    about = {
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
