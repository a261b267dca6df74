"""What a job description says of a decoder of G-code: its network, its loss, and how near a value
must be."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.gcode_metrics import Tolerance
from ray_jobs.sections import Section

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?%")


class GcodeModelSpec(Section):
    """The `model` section: an encoder of a window, and the heads on it."""

    encoder: Literal["transformer", "lstm"] = "transformer"
    hidden_dim: Annotated[int, Field(ge=1)] = 256
    num_heads: Annotated[int, Field(ge=1)] = 8  # of attention; the pooling has them under lstm, too
    num_layers: Annotated[int, Field(ge=1)] = 3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    sensor_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # whole ones, window by window
    num_bins: Annotated[int, Field(ge=1)] = 8  # of a feature's encoding: how finely it is read
    value_head: Literal["regression", "digits"] = "digits"
    integer_digits: Annotated[int, Field(ge=1, le=6)] = 2  # of value_head=digits, beside the sign
    decimal_digits: Annotated[int, Field(ge=0, le=6)] = 4

    @model_validator(mode="after")
    def _heads_divide(self) -> GcodeModelSpec:
        rest = self.hidden_dim % self.num_heads
        if rest:
            below = self.hidden_dim - rest
            near = " or ".join(str(dim) for dim in (below, below + self.num_heads) if dim)
            raise ValueError(
                f"hidden_dim={self.hidden_dim} cannot be shared by num_heads={self.num_heads}; set "
                f"model.hidden_dim to a multiple of it, such as {near}"
            )
        return self


class HeadWeights(Section):
    """What each head's loss counts."""

    command: NonNegative = 1.0
    param_type: NonNegative = 1.0
    param_value: NonNegative = 1.0

    @model_validator(mode="after")
    def _learns_something(self) -> HeadWeights:
        if not self.command + self.param_type + self.param_value:
            raise ValueError("all of loss.head_weights are 0, so nothing is learned; raise one")
        return self


class GcodeLossSpec(Section):
    """The `loss` section."""

    command: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NonNegative = 2.0
    class_weights: bool = False  # of commands, inverse to their windows in train
    head_weights: HeadWeights | Literal["learned"] = HeadWeights()
    rows: NonNegative = 1.0  # what the lines of all rows of a window count, beside its own line


def _check_tolerance(value: float | str) -> float | str:
    """Above 0: a number in machine units, or a share of the true value as `5%`."""
    amount = value
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        if not match:
            raise ValueError(f"{value!r} is neither a number in machine units nor a share as 5%")
        amount = float(match[1])
    if not 0 < float(amount) < float("inf"):
        raise ValueError(f"a tolerance must be above 0, not {value}")
    return value


AxisTolerance = Annotated[float | str, AfterValidator(_check_tolerance)]


class ValueTolerance(Section):
    """How far a value may be off and still be right: in machine units (inches), or a share of the
    true value."""

    F: AxisTolerance = "5%"
    R: AxisTolerance = "5%"
    X: AxisTolerance = 0.1
    Y: AxisTolerance = 0.1
    Z: AxisTolerance = 0.01

    def parsed(self) -> Tolerance:
        absolute, relative = [], []
        for name in PARAMETERS:
            value = getattr(self, name)
            is_share = isinstance(value, str)
            amount = float(value.strip().rstrip("% ")) / 100 if is_share else float(value)
            absolute.append(0.0 if is_share else amount)
            relative.append(amount if is_share else 0.0)
        return Tolerance(tuple(absolute), tuple(relative))
