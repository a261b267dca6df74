"""The network that reads G-code off sensors: an encoder of the window, a pooling, three heads.

Imports torch: for the code that trains and scores, not for what reads a job description.

Shapes: B windows, T rows a window, F features, H hidden, C commands, P parameters as in PARAMETERS.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.models.gcode_spec import GcodeModelSpec

BIN_RANGE = 2.0  # standard deviations either way that the bins of a feature span
SMOOTH_L1_BETA = 0.01  # standard deviations: beyond that an error counts as it is, not squared


class Heads(NamedTuple):
    """What the network says of a window. No head is told what another one, or the log, says."""

    command: Tensor  # logits [B, C]
    param_type: Tensor  # logits [B, P]: does the line set it
    param_value: Tensor  # [B, P] or [B, P, D]: what the value head makes values of


class GcodeNetwork(nn.Module):
    """Windows of scaled sensor rows to the line in force.

    The heads see the window through its last row, the one whose line is wanted, and through
    statistics over all rows, which few runs suffice to learn from.

    Args:
        learns_weights: of the heads' losses, by their uncertainty.
    """

    def __init__(
        self,
        spec: GcodeModelSpec,
        *,
        num_features: int,
        num_commands: int,
        window: int,
        learns_weights: bool = False,
    ):
        super().__init__()
        hidden = spec.hidden_dim
        self.sensor_dropout = spec.sensor_dropout
        self.embed = RowEmbedding(num_features, hidden, spec.num_bins)
        encoders = {"transformer": TransformerEncoder, "lstm": LSTMEncoder}
        self.encoder = encoders[spec.encoder](spec, window)
        self.pooling = Pooling(hidden, spec.num_heads, spec.dropout)
        self.dropout = nn.Dropout(spec.dropout)
        self.command = nn.Linear(hidden, num_commands)
        self.param_type = nn.Linear(hidden, len(PARAMETERS))
        self.param_value: ValueRegression | ValueDigits = (
            ValueRegression(hidden)
            if spec.value_head == "regression"
            else ValueDigits(hidden, spec.integer_digits, spec.decimal_digits)
        )
        # Here, and not in the loss, so that optimizer, checkpoints and replicas know of them.
        self.log_variance = (
            nn.Parameter(torch.zeros(len(Heads._fields))) if learns_weights else None
        )

    def forward(
        self, x: Tensor, mask: Tensor, *, with_rows: bool = False
    ) -> Heads | tuple[Heads, Heads]:
        """What the heads say of each window; `with_rows`, of each of its rows as well, [B, T, ...].

        Args:
            x: scaled rows [B, T, F], 0 where not measured.
            mask: [B, T, F], True where they are.
        """
        if self.training and self.sensor_dropout:
            chance = torch.rand(len(x), 1, x.shape[2], device=x.device)
            mask = mask & (chance >= self.sensor_dropout)
            x = x * mask
        rows = self.encoder(self.embed(x, mask))
        heads = self._read(self.pooling(rows))
        return (heads, self._read(rows)) if with_rows else heads

    def _read(self, hidden: Tensor) -> Heads:
        hidden = self.dropout(hidden)
        # bf16 has three digits, and values want four.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            return Heads(self.command(hidden), self.param_type(hidden), self.param_value(hidden))


class RowEmbedding(nn.Module):
    """A row's scaled values, which of them are measured, and the piecewise linear encoding of each
    value, by which a layer can draw thresholds as trees do (Gorishniy et al. 2022, On Embeddings
    for Numerical Features in Tabular Deep Learning, sec. 3.2), with bins of equal width."""

    low: Tensor

    def __init__(self, num_features: int, hidden_dim: int, num_bins: int):
        super().__init__()
        edges = torch.linspace(-BIN_RANGE, BIN_RANGE, num_bins + 1)
        self.register_buffer("low", edges[:-1], persistent=False)
        self.linear = nn.Linear((2 + num_bins) * num_features, hidden_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Rows [B, T, F] and their mask [B, T, F] -> [B, T, H]."""
        known = mask.to(x.dtype)
        filled = ((x[..., None] - self.low) * (len(self.low) / (2 * BIN_RANGE))).clamp(0, 1)
        bins = (filled * known[..., None]).flatten(-2)
        return self.linear(torch.cat([x, known, bins], dim=-1))


class TransformerEncoder(nn.Module):
    """Pre-norm transformer encoder (Vaswani et al. 2017) with learned positions. It is not causal:
    every row of a window stands before the answer."""

    def __init__(self, spec: GcodeModelSpec, window: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(window, spec.hidden_dim))
        nn.init.normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            spec.hidden_dim,
            spec.num_heads,
            dim_feedforward=2 * spec.hidden_dim,
            dropout=spec.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, spec.num_layers, norm=nn.LayerNorm(spec.hidden_dim), enable_nested_tensor=False
        )

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.layers(rows + self.position)


class LSTMEncoder(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997)."""

    def __init__(self, spec: GcodeModelSpec, window: int):
        super().__init__()
        self.lstm = nn.LSTM(
            spec.hidden_dim,
            spec.hidden_dim,
            spec.num_layers,
            batch_first=True,
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
        )

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.lstm(rows)[0]


class Pooling(nn.Module):
    """Attention of the last row over the window, beside that row itself, and mean, standard
    deviation (Snyder et al. 2018, X-vectors), minimum and maximum over the rows."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(
            hidden_dim, num_heads, dropout=dropout, batch_first=True
        )
        self.mix = nn.Linear(5 * hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, H] -> [B, H]."""
        last = rows[:, -1:]
        seen, _ = self.attention(last, rows, rows, need_weights=False)
        # The root of 0 has no gradient, and a window of standstill has no variance.
        std = rows.var(dim=1, correction=0).add(1e-6).sqrt()
        parts = [
            (last + seen).squeeze(1),
            rows.mean(dim=1),
            std,
            rows.amin(dim=1),
            rows.amax(dim=1),
        ]
        return self.norm(self.mix(torch.cat(parts, dim=-1)))


class ValueRegression(nn.Module):
    """A value a parameter, in standard deviations of train's values; their statistics travel with
    the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.linear = nn.Linear(hidden_dim, len(PARAMETERS))
        self.register_buffer("mean", torch.zeros(len(PARAMETERS)))
        self.register_buffer("std", torch.ones(len(PARAMETERS)))

    def fit(self, values: Tensor) -> None:
        """Take the statistics of train's values [N, P], NaN where not set; a parameter that has one
        value, or none, keeps a scale of 1."""
        for p, column in enumerate(values.double().T):
            known = column[~torch.isnan(column)]
            if len(known):
                std, mean = torch.std_mean(known, correction=0)
                self.mean[p] = mean
                self.std[p] = std if std > 0 else 1.0

    def forward(self, pooled: Tensor) -> Tensor:
        """[..., H] -> [..., P]."""
        return self.linear(pooled)

    def decode(self, output: Tensor) -> Tensor:
        """Values in machine units, [B, P]."""
        return output.double() * self.std.double() + self.mean.double()

    def losses(self, output: Tensor, values: Tensor) -> Tensor:
        """Smooth L1 (Girshick 2015) of each value, [B, P]."""
        wanted = (values - self.mean) / self.std
        return functional.smooth_l1_loss(output, wanted, beta=SMOOTH_L1_BETA, reduction="none")


class ValueDigits(nn.Module):
    """A sign and decimal digits a parameter, each a classifier: values to 10^-decimal_digits, below
    10^integer_digits."""

    def __init__(self, hidden_dim: int, integer_digits: int, decimal_digits: int):
        super().__init__()
        self.integer_digits, self.decimal_digits = integer_digits, decimal_digits
        self.num_digits = integer_digits + decimal_digits
        self.linear = nn.Linear(hidden_dim, len(PARAMETERS) * (2 + 10 * self.num_digits))

    @property
    def largest(self) -> float:
        """What the digits can say, in machine units."""
        return 10.0**self.integer_digits - 10.0**-self.decimal_digits

    def fit(self, values: Tensor) -> None:
        """Digits need no statistics."""

    def forward(self, pooled: Tensor) -> Tensor:
        """[..., H] -> logits [..., P, D]: of plus and minus, then of 0..9 digit by digit."""
        return self.linear(pooled).unflatten(-1, (len(PARAMETERS), -1))

    def decode(self, output: Tensor) -> Tensor:
        """Values in machine units, [B, P]: the likeliest sign and digits."""
        sign, digits = self._split(output)
        weights = self._powers(output.device).double() / 10**self.decimal_digits
        size = (digits.argmax(dim=-1).double() * weights).sum(dim=-1)
        return torch.where(sign.argmax(dim=-1) == 1, -size, size)

    def losses(self, output: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy, the mean over sign and digits of each value, [B, P]."""
        sign, digits = self._split(output)
        of_sign = functional.cross_entropy(
            sign.flatten(0, 1), (values < 0).long().flatten(), reduction="none"
        ).view(values.shape)
        of_digits = functional.cross_entropy(
            digits.flatten(0, 2), self.digits(values).flatten(), reduction="none"
        ).view(*values.shape, self.num_digits)
        return (of_sign + of_digits.sum(dim=-1)) / (1 + self.num_digits)

    def digits(self, values: Tensor) -> Tensor:
        """Of values [B, P], the highest first: [B, P, digits]. Larger ones than can be said are all
        nines."""
        units = (values.abs().double() * 10**self.decimal_digits).round().long()
        units = units.clamp(max=10**self.num_digits - 1)
        return units[..., None] // self._powers(values.device) % 10

    def _powers(self, device: torch.device) -> Tensor:
        return 10 ** torch.arange(self.num_digits - 1, -1, -1, device=device)

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        return output[..., :2], output[..., 2:].unflatten(-1, (self.num_digits, 10))
