"""Weights of members from their own validation scores: the best one, and the exponential rule."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ray_jobs.ensembling.validation import Validation
from ray_jobs.metrics import Floats, best_threshold, log_losses, objective_value
from ray_jobs.result import Objective

EXPONENTIAL_RATE = 5.0
MIN_WEIGHT, MAX_WEIGHT = 0.01, 0.5


def best_member(validation: Validation, objective: Objective) -> str:
    """The member with the best objective; of equals the one with less log-loss, then by name."""
    sign = 1 if objective.mode == "min" else -1

    def rank(name: str) -> tuple[float, float, str]:
        p = validation.predictions[name]
        value = objective_value(validation.y, p, objective.metric)
        return sign * value, float(log_losses(validation.y, p).mean()), name

    return min(validation.members, key=rank)


def member_scores(validation: Validation, objective: Objective) -> Floats:
    """0.6 F1 + 0.4 accuracy of each member, at its best threshold for the objective. Shape [M]."""
    scores = []
    for p in validation.predictions.values():
        called = p >= best_threshold(validation.y, p, objective.metric)
        num_hits = np.sum(called & (validation.y == 1))
        f1 = 2 * num_hits / (np.sum(called) + np.sum(validation.y))
        accuracy = np.mean(called == validation.y)
        scores.append(0.6 * f1 + 0.4 * accuracy)
    return np.array(scores)


def exponential_weights(scores: ArrayLike) -> Floats:
    """Weights ~ exp(5 score), within 0.01..0.5 and with sum 1. Shape [M].

    Clipped and then normalised, weights would leave the bounds again: they are clip(c exp(5 score))
    with the c that makes them sum to 1, so that those inside the bounds keep their ratios. One
    member takes weight 1; more than 100, for which the bounds cannot hold, take equal ones.
    """
    raw = np.exp(EXPONENTIAL_RATE * (np.asarray(scores, np.float64) - np.max(scores)))
    num_members = len(raw)
    if not MIN_WEIGHT * num_members <= 1 <= MAX_WEIGHT * num_members:
        return np.full(num_members, 1 / num_members)
    # The sum is piecewise linear in c and bends where a weight meets a bound.
    bends = np.sort(np.r_[MIN_WEIGHT / raw, MAX_WEIGHT / raw])
    sums = np.clip(bends[:, None] * raw, MIN_WEIGHT, MAX_WEIGHT).sum(axis=1)
    return np.clip(np.interp(1.0, sums, bends) * raw, MIN_WEIGHT, MAX_WEIGHT)
