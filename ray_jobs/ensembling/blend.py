"""Blend: the members' probabilities combined into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.ensembling.logistic import expit, logit
from ray_jobs.metrics import Floats
from ray_jobs.result import Finite


class Blend(BaseModel):
    """A weighted mean of probabilities (identity), or a logistic regression on logits (logit)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    link: Literal["identity", "logit"] = "identity"
    weights: dict[str, Finite] = Field(
        min_length=1
    )  # member -> weight, or coefficient of its logit
    intercept: Finite = 0.0

    def predict_proba(self, predictions: Mapping[str, ArrayLike]) -> Floats:
        """P(y = 1), [N], from each member's P(y = 1), [N].

        Raises:
            ValueError: a member is missing, or its predictions are not [N] within 0..1.
        """
        inputs = {name: _probabilities(name, predictions) for name in self.weights}
        sizes = {name: len(p) for name, p in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the members predict different numbers of rows: {sizes}")
        total = np.full(next(iter(sizes.values())), self.intercept)
        for name, p in inputs.items():
            total += self.weights[name] * (p if self.link == "identity" else logit(p))
        # Weights sum to 1 but for rounding, and may exceed it by as much.
        return np.clip(total, 0, 1) if self.link == "identity" else expit(total)


def _probabilities(name: str, predictions: Mapping[str, ArrayLike]) -> Floats:
    if name not in predictions:
        raise ValueError(f"the ensemble needs predictions of {name!r}, but there are none")
    p = np.asarray(predictions[name], np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"predictions of {name!r} must be [N], finite and between 0 and 1")
    return p
