"""Ensemble: members blended, calibrated and decided upon. Reads and predicts with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from ray_jobs.ensembling.blend import Blend
from ray_jobs.ensembling.calibration import Calibration
from ray_jobs.metrics import Floats
from ray_jobs.result import Candidate, EnsembleResult, Finite


class Ensemble(BaseModel):
    """How members become one prediction. Its JSON, read back, predicts the same bit for bit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str  # "greedy", or "single:<member>"
    blend: Blend
    calibration: Calibration
    threshold: Finite  # positive where the probability is at least this
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader of its scores must know

    @property
    def members(self) -> list[str]:
        """The members whose predictions it needs."""
        return list(self.blend.weights)

    @property
    def weights(self) -> dict[str, float]:
        """Member to weight; for stacking, to the coefficient of its logit."""
        return dict(self.blend.weights)

    def predict_proba(self, predictions: Mapping[str, ArrayLike]) -> Floats:
        """P(y = 1), [N], from each member's P(y = 1), [N]; members it does not need are ignored.

        Raises:
            ValueError: a member is missing, or its predictions are not [N] within 0..1.
        """
        return self.calibration.apply(self.blend.predict_proba(predictions))

    def to_result(self) -> EnsembleResult:
        return EnsembleResult(
            strategy=self.strategy,
            weights=self.weights,
            calibration=self.calibration.kind,
            threshold=self.threshold,
            candidates=list(self.candidates),
        )
