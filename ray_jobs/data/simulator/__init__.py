"""Simulated rooms: episodes that obey physics, and a second generator whose ceiling is known.

`generate_shards` writes a dataset; `simulate_episode` gives one room's frames, CO2 readings and
label to look at.
"""

from ray_jobs.data.features import FEATURES
from ray_jobs.data.simulator.episodes import SCENARIOS, Episode, simulate_episode
from ray_jobs.data.simulator.generate import ROLES, generate_shards, generator_digest

__all__ = [
    "FEATURES",
    "ROLES",
    "SCENARIOS",
    "Episode",
    "generate_shards",
    "generator_digest",
    "simulate_episode",
]
