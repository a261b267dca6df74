"""What a model has to show before it becomes the champion: the section `promotion`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_jobs.section import Section

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Waivable = Literal["leaks", "duplicates", "health"]


class PromotionSpec(Section):
    """The rules of the promotion gate. `null` leaves a rule out."""

    min_metrics: dict[str, Number] = {}  # on test: name -> the least it may be
    max_gap: Annotated[float, Field(ge=0)] | None = 0.1  # of the objective: test behind validation
    max_ece: Annotated[float, Field(ge=0, le=1)] | None = 0.15  # of models that give probabilities
    must_be_better: bool = True  # than the champion; false: it may be as good
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of that, one-sided
    max_latency_ms: Positive | None = 1000.0  # of one example, on the machine that promotes
    max_size_mb: Positive | None = 2048.0  # of the model's files, 10^6 bytes
    waive: list[Waivable] = []  # rules whose findings are told and do not refuse
    # A champion that was made so by hand and that the gate refuses, or an alias that was deleted.
    moved_by_hand: Literal["revert", "accept"] = "revert"
