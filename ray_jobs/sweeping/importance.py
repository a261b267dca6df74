"""How much of the trials' differences each hyperparameter accounts for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from ray_jobs.sweeping.records import TrialRecord
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.search import Space, for_optuna

MIN_TRIALS = 8  # a forest of fewer says nothing


@dataclass(frozen=True)
class Importance:
    """Shares of the variance of the value at the first rung; none where there is a reason."""

    shares: dict[str, float] = field(default_factory=dict)  # key -> of its own, largest first
    num_trials: int = 0
    why_absent: str = ""

    @property
    def jointly(self) -> float:
        """The share that is of several keys together."""
        return max(1.0 - sum(self.shares.values()), 0.0)


def assess_importance(sweep: SweepResult, space: Space) -> Importance:
    """Share of the variance that each hyperparameter accounts for by itself: fANOVA's main effects
    (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance"), from
    Optuna.

    The value is each trial's best within the first rung's epochs, where all trials have been
    trained equally long; one that ended by itself before counts with its best, as it does to the
    scheduler. One that failed before counts not at all.
    """
    values = first_rung_values(sweep)
    configs = {trial.id: trial.config for trial in sweep.trials}
    varied = sorted(key for key in space if len({configs[trial][key] for trial in values}) > 1)
    if len(values) < MIN_TRIALS:
        return Importance(
            why_absent=f"Trials with a value at the first rung: {len(values)} of {len(configs)}; "
            f"with fewer than {MIN_TRIALS} there is nothing to go by."
        )
    if len(set(values.values())) == 1:
        return Importance(why_absent="All trials have the same value at the first rung.")
    if len(varied) < 2:
        return Importance(
            why_absent=f"The trials differ in {varied[0] if varied else 'no hyperparameter'} alone."
        )

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if sweep.objective.mode == "max" else "minimize"
    study = optuna.create_study(direction=direction)
    distributions = {key: for_optuna(space[key]) for key in varied}
    for trial, value in values.items():
        params = {key: configs[trial][key] for key in varied}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=sweep.seed),
            normalize=False,  # scaled up to 1, interactions would be hidden; this option is new
        )
    return Importance(shares=shares, num_trials=len(values))


def first_rung_values(sweep: SweepResult) -> dict[str, float]:
    """Each trial's best value within the first rung's epochs, of those that have one."""
    first = sweep.rungs[0]
    values = {}
    for trial in sweep.trials:
        record = TrialRecord(config=trial.config, values=trial.history)
        best = record.best(sweep.objective.mode, within=first)
        if best is not None and (trial.epochs >= first or trial.status == "SUCCEEDED"):
            values[trial.id] = best
    return values
