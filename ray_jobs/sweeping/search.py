"""Proposals: the configuration of each trial of a sweep."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_jobs.errors import SpecError
from ray_jobs.sweeping.rungs import Mode
from ray_jobs.sweeping.spec import Distribution, SweepSpec, Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = Mapping[str, Distribution]
Config = dict[str, Value]
_NUM_RANDOM = 10  # proposals before TPE has enough to go by


@dataclass(frozen=True)
class Observation:
    """How far a trial has come, and its best value on the way."""

    config: Config
    epochs: int
    value: float
    is_complete: bool


def check_search(spec: SweepSpec) -> None:
    """See that the proposals can be made here.

    Raises:
        SpecError: Optuna is asked for and not installed.
    """
    if spec.search == "tpe" and importlib.util.find_spec("optuna") is None:
        raise SpecError(
            "sweep.search: tpe needs Optuna; pip install optuna, or set sweep.search to random"
        )


def propose(space: Space, *, seed: int, trial: int) -> Config:
    """Random values for a trial: they depend on the space, the seed and the trial alone."""
    generator = np.random.default_rng([seed, trial])
    return {key: _draw(space[key], generator) for key in sorted(space)}


def propose_tpe(
    space: Space, observations: Sequence[Observation], *, seed: int, trial: int, mode: Mode
) -> Config:
    """Values for a trial by the tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms
    for Hyper-Parameter Optimization"), from Optuna.

    The estimator is made anew for each proposal, which thus depends on the observations, the seed
    and the trial alone: Ray's own searcher keeps a state that a killed sweep would have to
    unpickle.
    """
    if len(observations) < _NUM_RANDOM:
        return propose(space, seed=seed, trial=trial)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (stream,) = np.random.SeedSequence([seed, trial]).generate_state(1)
    study = optuna.create_study(
        direction="maximize" if mode == "max" else "minimize",
        sampler=optuna.samplers.TPESampler(seed=int(stream), n_startup_trials=_NUM_RANDOM),
    )
    distributions = {key: for_optuna(space[key]) for key in sorted(space)}
    states = optuna.trial.TrialState
    for seen in observations:  # Optuna ranks parked trials by how far they came, then by value
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if seen.is_complete else states.PRUNED,
                params=seen.config,
                distributions=distributions,
                value=seen.value,
                intermediate_values={seen.epochs: seen.value},
            )
        )
    return dict(study.ask(distributions).params)


def _draw(distribution: Distribution, generator: np.random.Generator) -> Value:
    if distribution.values is not None:
        return distribution.values[int(generator.integers(len(distribution.values)))]
    assert distribution.low is not None
    assert distribution.high is not None
    low, high = distribution.low, distribution.high
    margin = 0.5 if distribution.integer else 0.0  # each whole number gets its own unit
    if distribution.log:
        drawn = math.exp(generator.uniform(math.log(low - margin), math.log(high + margin)))
    else:
        drawn = generator.uniform(low - margin, high + margin)
    kept = min(max(drawn, low), high)
    return round(kept) if distribution.integer else kept


def for_optuna(distribution: Distribution) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if distribution.values is not None:
        return CategoricalDistribution(distribution.values)
    assert distribution.low is not None
    assert distribution.high is not None
    if distribution.integer:
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
