"""A causal transformer over the last readings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ray_jobs.models.sequence_member import SequenceConfig, SequenceMember

if TYPE_CHECKING:
    from ray_jobs.models.networks import SequenceNetwork


class Transformer(SequenceConfig):
    family: Literal["transformer"] = "transformer"
    seconds_per_million_readings: ClassVar[float] = 23
    hidden_size: PositiveInt = 64
    num_heads: PositiveInt = 4
    num_layers: PositiveInt = 2
    dropout: float = Field(default=0.1, ge=0, lt=1)
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def _heads_divide_hidden_size(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, "
                f"but {self.hidden_size} is not one of {self.num_heads}"
            )
        return self

    def build(self) -> SequenceMember:
        return SequenceMember(self, self._network)

    def _network(self, num_features: int) -> SequenceNetwork:
        from ray_jobs.models.networks import TransformerNetwork

        return TransformerNetwork(
            num_features,
            self.window,
            self.hidden_size,
            self.num_heads,
            self.num_layers,
            self.dropout,
        )
