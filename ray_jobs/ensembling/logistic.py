"""Logistic regression with a Gaussian prior: the fit behind stacking and sigmoid calibration."""

from __future__ import annotations

import numpy as np

from ray_jobs.metrics import EPSILON, Floats

_MAX_STEPS = 100
_TOLERANCE = 1e-12  # of the loss that a Newton step can still gain, per row


def logit(p: Floats) -> Floats:
    """log(p / (1 - p)), with `p` clipped by `EPSILON`."""
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    return np.log(clipped) - np.log1p(-clipped)


def expit(z: Floats) -> Floats:
    """1 / (1 + exp(-z)), without overflow."""
    return np.exp(-np.logaddexp(0, -z))


def fit_logistic(
    x: Floats, targets: Floats, *, prior_mean: float, prior_precision: float
) -> tuple[Floats, float]:
    """Coefficients [M] and intercept of least log-loss + precision / 2 |coefficients - mean|^2.

    The log-loss is summed over rows; the intercept has no prior. Newton's method, steps halved.

    Args:
        x: inputs, [N, M].
        targets: probabilities, [N]; not all 0 and not all 1.
        prior_mean: of every coefficient.
        prior_precision: of every coefficient, above 0.
    """
    center = x.mean(axis=0)
    design = np.column_stack([x - center, np.ones(len(x))])
    precision = np.r_[np.full(x.shape[1], prior_precision), 0.0]
    mean = np.r_[np.full(x.shape[1], prior_mean), 0.0]

    def loss(theta: Floats) -> float:
        z = design @ theta
        likelihood = np.logaddexp(0, z) - targets * z
        return float(likelihood.sum() + precision @ (theta - mean) ** 2 / 2)

    theta = mean + np.r_[np.zeros(x.shape[1]), logit(np.atleast_1d(targets.mean()))]
    current = loss(theta)
    for _ in range(_MAX_STEPS):
        p = expit(design @ theta)
        gradient = design.T @ (p - targets) + precision * (theta - mean)
        hessian = (design.T * (p * (1 - p))) @ design + np.diag(precision + _TOLERANCE)
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)
        if gain < _TOLERANCE * len(x):
            break
        size = 1.0
        while size > _TOLERANCE and loss(theta - size * step) > current - size * gain / 4:
            size /= 2
        theta = theta - size * step
        current = loss(theta)
    return theta[:-1], float(theta[-1] - theta[:-1] @ center)
