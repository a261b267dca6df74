"""Losses of a classifier: means over the samples, so that parts of a batch add up to the whole.

Shapes: N samples, K classes; logits [N, K]. They are reckoned in fp32 also under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.Module):
    """Cross-entropy with label smoothing (Szegedy et al. 2016) and class weights.

    With weights this is the mean of weight x loss. torch's own divides by the weights that happen
    to be in the batch, which gives a rare class more or less say from batch to batch.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
        class_weights: one weight a class; default: all 1.
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss; target is [N] of classes or, without class weights, [N, K] of shares."""
        losses = functional.cross_entropy(
            logits.float(), target, label_smoothing=self.label_smoothing, reduction="none"
        )
        return _weighted_mean(losses, target, self.class_weights)


class FocalLoss(nn.Module):
    """Multi-class focal loss, -weight (1 - p)^gamma log p (Lin et al. 2017, eq. 5).

    Args:
        gamma: 0 gives the cross-entropy; the larger, the less a sample counts that is easy.
        class_weights: the paper's alpha, one weight a class; default: all 1.
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float, class_weights: Tensor | None = None):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss; target is [N] of classes."""
        log_p = functional.log_softmax(logits.float(), dim=-1).gather(1, target[:, None]).squeeze(1)
        # 1 - p by expm1, and above 0: where p is 1 to fp32, the power's gradient is not finite.
        miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).tiny)
        return _weighted_mean(-(miss**self.gamma) * log_p, target, self.class_weights)


def _weighted_mean(losses: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is not None:
        assert target.ndim == 1, "a sample of shares has no one class to be weighted by"
        losses = losses * class_weights[target]
    return losses.mean()
