"""The `independent` generator: features that know nothing of each other, a label of known odds.

No room behaves like this. It is the reference with a known ceiling (accuracy 0.70, AUC 0.773) that
an honest evaluation reaches and does not pass.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from ray_jobs.data.features import FEATURES

# What each column is clipped to. -40..330 degC and 400..5000 ppm are the reference's own ranges, as
# are 0..50 and 0..20 for means and spreads; the rest are chosen so that they hardly ever bind.
CLIP = {
    "t_mean": (-40, 330),
    "t_std": (0, 50),
    "t_max": (-40, 330),
    "t_p95": (-40, 330),
    "t_hot_area_pct": (0, 100),
    "t_hot_largest_blob_pct": (0, 50),
    "t_grad_mean": (0, 50),
    "t_grad_std": (0, 20),
    "t_diff_mean": (0, 50),
    "t_diff_std": (0, 20),
    "flow_mag_mean": (0, 50),
    "flow_mag_std": (0, 20),
    "tproxy_val": (-40, 330),
    "tproxy_delta": (-50, 50),
    "tproxy_vel": (-20, 20),
    "gas_val": (400, 5000),
    "gas_delta": (-500, 500),
    "gas_vel": (-100, 100),
}
BLUR = 0.05


def draw_rows(
    seed: int, shard: int, num_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
    """Features [N, 18], labels [N] and P(fire | features) [N], which no honest model outranks.

    A label is drawn with probability clip(score + N(0, 0.05), 0, 1). Of that blur the features tell
    nothing: what is returned is the expectation over it.
    """
    rng = np.random.default_rng(SeedSequence(seed, spawn_key=(2, shard)))
    features = np.stack(_draw_columns(rng, num_rows), axis=1).astype(np.float32)
    score = fire_score(features)
    blurred = np.clip(score + rng.normal(0, BLUR, num_rows), 0, 1)
    fire = (rng.random(num_rows) < blurred).astype(np.int8)
    return features, fire, _expected_clip(score, BLUR).astype(np.float32)


def fire_score(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """A sum of thresholds that a row [N, 18] passes, clipped to 0..1."""
    value = dict(zip(FEATURES, features.T, strict=True))
    t_max, gas = value["t_max"], value["gas_val"]
    area, grad = value["t_hot_area_pct"], value["t_grad_mean"]
    score = (
        0.3 * (t_max > 60)
        + 0.25 * (value["t_p95"] > 55)
        + 0.2 * (value["t_mean"] > 40)
        + 0.2 * (area > 15)
        + 0.15 * (value["t_hot_largest_blob_pct"] > 5)
        + 0.15 * (grad > 8)
        + 0.15 * (value["t_diff_mean"] > 12)
        + 0.25 * (gas > 800)
        + 0.2 * (value["gas_delta"] > 150)
        + 0.3 * ((t_max > 70) & (gas > 1000))
        + 0.2 * ((area > 20) & (grad > 10))
    )
    return np.clip(score, 0, 1)


def _expected_clip(mean: NDArray[np.float64], std: float) -> NDArray[np.float64]:
    """E[clip(X, 0, 1)] of X ~ N(mean, std): the mean of a rectified normal distribution."""
    from scipy.special import ndtr

    low, high = -mean / std, (1 - mean) / std
    density = np.exp(-(np.stack([low, high]) ** 2) / 2) / np.sqrt(2 * np.pi)
    return mean * (ndtr(high) - ndtr(low)) + std * (density[0] - density[1]) + ndtr(-high)


def _draw_columns(rng: Generator, num_rows: int) -> list[NDArray[np.float64]]:
    """Normal(mean, std), Gamma(shape, scale), Beta(a, b)."""
    n = num_rows
    drawn = {
        "t_mean": rng.normal(25, 15, n),
        "t_std": rng.gamma(2, 5, n),
        "t_max": rng.normal(45, 20, n),
        "t_p95": rng.normal(40, 18, n),
        "t_hot_area_pct": 100 * rng.beta(2, 5, n),
        "t_hot_largest_blob_pct": 50 * rng.beta(1, 4, n),
        "t_grad_mean": rng.gamma(2, 3, n),
        "t_grad_std": rng.gamma(1, 2, n),
        "t_diff_mean": rng.gamma(2, 4, n),
        "t_diff_std": rng.gamma(1, 3, n),
        "flow_mag_mean": rng.gamma(2, 2, n),
        "flow_mag_std": rng.gamma(1, 1.5, n),
        "tproxy_val": rng.normal(30, 15, n),
        "tproxy_delta": rng.normal(0, 10, n),
        "tproxy_vel": rng.normal(0, 5, n),
        "gas_val": rng.normal(450, 200, n),
        "gas_delta": rng.normal(0, 100, n),
        "gas_vel": rng.normal(0, 15, n),
    }
    return [np.clip(drawn[name], *CLIP[name]) for name in FEATURES]
