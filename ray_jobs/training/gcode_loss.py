"""The loss of a decoder of G-code: its heads' losses, weighed. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ray_jobs.models.gcode_network import GcodeNetwork, Heads
from ray_jobs.models.gcode_spec import GcodeLossSpec
from ray_jobs.training.batch import Batch
from ray_jobs.training.losses import CrossEntropy, FocalLoss
from ray_jobs.training.recipe import class_weights


class GcodeLoss:
    """Mean over windows of the weighted sum of three losses.

    A value counts where the line sets it. The sum over them is divided by train's mean number of
    values a window, and not by the batch's own, so that parts of a batch add up to the whole.

    Args:
        command_counts: windows of each command in train.
        values_per_window: mean number of values that a line sets in train.
    """

    def __init__(
        self,
        spec: GcodeLossSpec,
        *,
        command_counts: Sequence[int],
        values_per_window: float,
        device: torch.device,
    ):
        weights = torch.tensor(class_weights(command_counts)) if spec.class_weights else None
        command = (
            FocalLoss(spec.focal_gamma, weights)
            if spec.command == "focal"
            else CrossEntropy(0.0, weights)
        )
        self._command = command.to(device)
        self._values_per_window = values_per_window
        self._weights: Tensor | None = None
        if spec.head_weights != "learned":
            fixed = [getattr(spec.head_weights, head) for head in Heads._fields]
            self._weights = torch.tensor(fixed, device=device)

    def __call__(self, network: GcodeNetwork, heads: Heads, batch: Batch) -> Tensor:
        """The loss of a batch of windows whose commands train has.

        Learned weights: sum of exp(-s) loss + s / 2 over the heads, s the logarithm of a head's
        variance (Kendall et al. 2018, eq. 10, without the 1/2 of a Gaussian, which only shifts s).
        """
        losses = self.by_head(network, heads, batch)
        if self._weights is not None:
            return (self._weights * losses).sum()
        assert network.log_variance is not None, "loss.head_weights=learned"
        return (torch.exp(-network.log_variance) * losses + network.log_variance / 2).sum()

    def of_rows(self, network: GcodeNetwork, rows: Heads, batch: Batch) -> Tensor:
        """The loss of the lines in force at all rows of a batch, a mean over rows.

        Deep supervision of the encoder: a window has one target of its own, and as many lines in
        force as rows. A row without a line, or with a command that train's windows lack, adds 0.

        Args:
            rows: what the heads say of each row, [B, T, ...].
        """
        known = batch.tensors["row_command"] >= 0
        targets = {name: batch.tensors[f"row_{name}"][known] for name in Heads._fields}
        heads = Heads(*(part[known] for part in rows))
        return self(network, heads, Batch(targets, [])) * known.float().mean()

    def by_head(self, network: GcodeNetwork, heads: Heads, batch: Batch) -> Tensor:
        """Of command, param_type and param_value, each a mean over windows. Shape [3]."""
        is_set = batch.tensors["param_type"].float()
        of_values = network.param_value.losses(
            heads.param_value.float(), batch.tensors["param_value"]
        )
        return torch.stack(
            [
                self._command(heads.command, batch.tensors["command"]),
                functional.binary_cross_entropy_with_logits(heads.param_type.float(), is_set),
                (of_values * is_set).sum(dim=1).mean() / self._values_per_window,
            ]
        )
