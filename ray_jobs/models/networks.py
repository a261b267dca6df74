"""Causal sequence networks: a logit at every reading, from that reading and those before it in the
window.

Shapes: B sequences, T readings each (T <= window), F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """(x - mean) / std with the training rows' statistics, which travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def fit(self, x: Tensor) -> None:
        """Take mean and standard deviation of x [N, F]; a constant feature is only centred."""
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class SequenceNetwork(nn.Module):
    """Logits [B, T] of readings [B, T, F], which it standardizes itself."""

    def __init__(self, num_features: int):
        super().__init__()
        self.standardize = Standardize(num_features)


class LSTMNetwork(SequenceNetwork):
    """LSTM (Hochreiter & Schmidhuber 1997) with a linear head."""

    def __init__(self, num_features: int, hidden_size: int, num_layers: int, dropout: float):
        super().__init__(num_features)
        self.lstm = nn.LSTM(
            num_features,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, F] -> logits [B, T]."""
        hidden, _ = self.lstm(self.standardize(x))
        return self.head(self.dropout(hidden)).squeeze(-1)


class TransformerNetwork(SequenceNetwork):
    """Causal transformer encoder (Vaswani et al. 2017) with pre-norm layers and learned
    positions."""

    def __init__(
        self,
        num_features: int,
        window: int,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        dropout: float,
    ):
        super().__init__(num_features)
        self.embed = nn.Linear(num_features, hidden_size)
        self.position = nn.Parameter(torch.zeros(window, hidden_size))
        nn.init.normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            hidden_size,
            num_heads,
            dim_feedforward=2 * hidden_size,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(hidden_size), enable_nested_tensor=False
        )
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, F] -> logits [B, T]."""
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        hidden = self.embed(self.standardize(x)) + self.position[:length]
        return self.head(self.encoder(hidden, mask=mask, is_causal=True)).squeeze(-1)
