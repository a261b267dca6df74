"""An LSTM over the last readings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ray_jobs.models.sequence_member import SequenceConfig, SequenceMember

if TYPE_CHECKING:
    from ray_jobs.models.networks import SequenceNetwork


class LSTMClassifier(SequenceConfig):
    family: Literal["lstm_classifier"] = "lstm_classifier"
    seconds_per_million_readings: ClassVar[float] = 6.5
    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 1
    dropout: float = Field(default=0.1, ge=0, lt=1)
    epochs: PositiveInt = 50
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3

    def build(self) -> SequenceMember:
        return SequenceMember(self, self._network)

    def _network(self, num_features: int) -> SequenceNetwork:
        from ray_jobs.models.networks import LSTMNetwork

        return LSTMNetwork(num_features, self.hidden_size, self.num_layers, self.dropout)
