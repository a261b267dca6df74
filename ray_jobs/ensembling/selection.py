"""Ensemble selection: which members to average, and how often each (Caruana et al. 2004)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_jobs.metrics import EPSILON, Floats

NUM_BAGS = 10
NUM_PICKS = 20


def greedy_weights(
    probabilities: Floats, y: NDArray[np.int8], clusters: NDArray[np.int64], seed: int
) -> Floats:
    """Weights [M] by bagged greedy selection with replacement (Caruana et al. 2004, ICML).

    In each bag, members are added to a plain average one at a time, each as often as it lowers
    the log-loss most; the best average on the way is kept, and the bags' weights are averaged.

    It minimises log-loss whatever the objective: that is proper and convex in the weights, while
    F1 jumps with single rows and needs a new threshold for every trial. Caruana's bags are random
    subsets of a library of thousands of models; half of a handful would often lack the best, so a
    bag is here a random half of the clusters of rows, to the same end.

    Args:
        probabilities: P(y = 1) of M members, [M, N].
        y: labels, [N].
        clusters: [N], whole ones go into a bag.
        seed: of the bags.
    """
    likelihood = np.where(y == 1, probabilities, 1 - probabilities)  # of what happened, [M, N]
    rng = np.random.default_rng(seed)
    num_clusters = int(clusters.max()) + 1
    weights = np.zeros(len(probabilities))
    for _ in range(NUM_BAGS):
        in_bag = rng.permutation(num_clusters) < (num_clusters + 1) // 2
        weights += _select(likelihood[:, in_bag[clusters]])
    return weights / NUM_BAGS


def _select(likelihood: Floats) -> Floats:
    """Weights [M] of the best average met while adding `NUM_PICKS` members greedily."""
    counts, total = np.zeros(len(likelihood)), np.zeros(likelihood.shape[1])
    best, best_loss = counts, np.inf
    for num_picked in range(1, NUM_PICKS + 1):
        means = (total + likelihood) / num_picked
        losses = -np.log(np.clip(means, EPSILON, 1 - EPSILON)).mean(axis=1)
        pick = int(np.argmin(losses))
        counts[pick] += 1
        total += likelihood[pick]
        if losses[pick] < best_loss:
            best, best_loss = counts / num_picked, losses[pick]
    return best
