"""Calibration: a monotone map that makes an ensemble's scores mean what they say."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.ensembling.comparison import Score, simplest_near_best
from ray_jobs.ensembling.folds import Folds
from ray_jobs.ensembling.logistic import expit, fit_logistic, logit
from ray_jobs.metrics import Floats, log_losses
from ray_jobs.result import Finite

KINDS = ("none", "sigmoid", "isotonic")  # simplest first


class _Map(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NoCalibration(_Map):
    """The score as it is."""

    kind: Literal["none"] = "none"

    def apply(self, p: Floats) -> Floats:
        return p


class SigmoidCalibration(_Map):
    """expit(slope * logit(p) + intercept)."""

    kind: Literal["sigmoid"] = "sigmoid"
    slope: Annotated[Finite, Field(ge=0)]
    intercept: Finite

    def apply(self, p: Floats) -> Floats:
        return expit(self.slope * logit(p) + self.intercept)


class IsotonicCalibration(_Map):
    """A rising line through knots, level beyond the first and the last."""

    kind: Literal["isotonic"] = "isotonic"
    knots: tuple[Finite, ...] = Field(min_length=1)
    values: tuple[Finite, ...] = Field(min_length=1)

    def apply(self, p: Floats) -> Floats:
        return np.interp(p, self.knots, self.values)


Calibration = Annotated[
    NoCalibration | SigmoidCalibration | IsotonicCalibration, Field(discriminator="kind")
]


def fit_calibration(kind: str, y: NDArray[np.int8], p: Floats) -> Calibration:
    """Fit one kind of `KINDS` to labels and scores [N]."""
    if kind == "sigmoid":
        return _fit_sigmoid(y, p)
    if kind == "isotonic":
        return _fit_isotonic(y, p)
    return NoCalibration()


def choose_calibration(y: NDArray[np.int8], p: Floats, folds: Folds | None) -> str:
    """The simplest kind whose cross-validated log-loss is within one standard error of the best.

    "none" where rows are too few to leave any out (`folds` is None).
    """
    if folds is None:
        return "none"
    scores = []
    for kind in KINDS:
        calibrated = np.empty_like(p)
        for train, held in folds:
            calibrated[held] = fit_calibration(kind, y[train], p[train]).apply(p[held])
        scores.append(Score.of_rows(log_losses(y, calibrated)))
    return KINDS[simplest_near_best(scores, folds.clusters, mode="min")]


def _fit_sigmoid(y: NDArray[np.int8], p: Floats) -> SigmoidCalibration:
    """Fit on logits with smoothed targets (Platt 1999, "Probabilistic outputs for SVMs").

    A negative slope would turn the ranking around; the best of the others is then 0.
    """
    num_positive = int(y.sum())
    num_negative = len(y) - num_positive
    targets = np.where(y == 1, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    # The faint prior decides only where the data cannot: scores that are all the same.
    coefficients, intercept = fit_logistic(
        logit(p)[:, None], targets, prior_mean=1.0, prior_precision=1e-6
    )
    slope = float(coefficients[0])
    if slope < 0:
        slope, intercept = 0.0, float(logit(np.atleast_1d(targets.mean()))[0])
    return SigmoidCalibration(slope=slope, intercept=intercept)


def _fit_isotonic(y: NDArray[np.int8], p: Floats) -> IsotonicCalibration:
    """Pool adjacent violators (Zadrozny & Elkan 2002, KDD).

    Its ends would be exactly 0 and 1; they keep 1 / (N + 2) from them, by the rule of succession.
    """
    from scipy.optimize import isotonic_regression

    scores, inverse, num_rows = np.unique(p, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, y) / num_rows
    fit = isotonic_regression(shares, weights=num_rows)
    starts = fit.blocks[:-1]
    ends = fit.blocks[1:] - 1
    at = np.unique(np.r_[starts, ends])  # a level stretch is its two ends
    margin = 1 / (len(y) + 2)
    values = np.clip(fit.x[at], margin, 1 - margin)
    return IsotonicCalibration(knots=tuple(scores[at].tolist()), values=tuple(values.tolist()))
