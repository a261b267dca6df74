"""Strategies: the ways to blend members, from the simplest to the most flexible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ray_jobs.ensembling.blend import Blend
from ray_jobs.ensembling.selection import greedy_weights
from ray_jobs.ensembling.stacking import stack
from ray_jobs.ensembling.validation import Validation
from ray_jobs.ensembling.weights import best_member, exponential_weights, member_scores
from ray_jobs.metrics import Floats
from ray_jobs.result import Objective

Strategy = Callable[[Validation, Objective, int], Blend]  # the integer is a seed


def single(validation: Validation, objective: Objective, seed: int) -> Blend:
    return Blend(weights={best_member(validation, objective): 1.0})


def equal(validation: Validation, objective: Objective, seed: int) -> Blend:
    num_members = len(validation.members)
    return _average(validation, np.full(num_members, 1 / num_members))


def exponential(validation: Validation, objective: Objective, seed: int) -> Blend:
    return _average(validation, exponential_weights(member_scores(validation, objective)))


def greedy(validation: Validation, objective: Objective, seed: int) -> Blend:
    probabilities = np.stack(list(validation.predictions.values()))
    weights = greedy_weights(probabilities, validation.y, validation.clusters, seed)
    return _average(validation, weights)


def stacking(validation: Validation, objective: Objective, seed: int) -> Blend:
    return stack(validation)


# Simplest first: the order in which `auto` prefers them.
STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "equal": equal,
    "exponential": exponential,
    "greedy": greedy,
    "stacking": stacking,
}


def _average(validation: Validation, weights: Floats) -> Blend:
    """A weighted mean, without the members of no weight."""
    named = zip(validation.members, weights.tolist(), strict=True)
    return Blend(weights={name: weight for name, weight in named if weight > 0})
