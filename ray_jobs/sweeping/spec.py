"""The `sweep` section of a job description: how many trials, over what, and which go on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_jobs.sections import Section

Value = bool | int | float | str
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class Distribution(Section):
    """Where one hyperparameter comes from: a list of values, or a range with both ends in it."""

    values: list[Value] | None = None
    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    log: bool = False  # uniform in the logarithm
    integer: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Distribution:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise ValueError("give either values, or low and high with log and integer")
            if not self.values:
                raise ValueError("values is empty; list at least one, such as [16, 32]")
            if len({(type(value), value) for value in self.values}) < len(self.values):
                raise ValueError(f"values repeats itself: {self.values}; list each value once")
            return self
        if self.low is None or self.high is None:
            raise ValueError(
                "say what to try: {values: [16, 32]} or {low: 1e-5, high: 1e-3, log: true}"
            )
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but {self.low:g} is not below {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, but low is {self.low:g}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(
                f"integer needs whole numbers at both ends, not {self.low:g} and {self.high:g}"
            )
        return self


class SweepSpec(Section):
    """Trials of the job with other hyperparameters.

    The rungs are at grace_epochs, grace_epochs x reduction_factor, ... and at max_epochs, as in
    asynchronous successive halving (Li et al. 2018, "A System for Massively Parallel
    Hyperparameter Tuning", algorithm 2).
    """

    num_trials: Annotated[int, Field(ge=1)] = 40
    max_epochs: Annotated[int, Field(ge=1)] = 200
    grace_epochs: Annotated[int, Field(ge=1)] = 50
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    scheduler: Literal["pausing_asha", "asha", "none"] = "pausing_asha"
    search: Literal["random", "tpe"] = "random"
    space: dict[str, Distribution]  # dotted key of this description -> what to try
    metric: str | None = None  # must be the objective's
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None  # default: as many as fit

    @field_validator("space")
    @classmethod
    def _dotted_keys(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        if not space:
            raise ValueError("the space is empty; name at least one key, such as train.batch_size")
        for key in space:
            if not _KEY.fullmatch(key):
                raise ValueError(
                    f"{key!r} is not a dotted key of the job description, such as "
                    "train.learning_rate"
                )
        return space

    @model_validator(mode="after")
    def _grace_within_epochs(self) -> SweepSpec:
        if self.grace_epochs > self.max_epochs:
            raise ValueError(
                f"grace_epochs ({self.grace_epochs}) exceeds max_epochs ({self.max_epochs}): no "
                "trial could ever be parked; lower grace_epochs or raise max_epochs"
            )
        return self
