"""Build an ensemble from the members' validation predictions: try, choose, fit, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from numpy.typing import ArrayLike

from ray_jobs.ensembling.blend import Blend
from ray_jobs.ensembling.calibration import KINDS
from ray_jobs.ensembling.comparison import Score, exceeds, simplest_near_best
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.ensembling.folds import Folds, make_folds
from ray_jobs.ensembling.procedure import Procedure, Trial, make_splits
from ray_jobs.ensembling.strategies import STRATEGIES
from ray_jobs.ensembling.validation import Validation
from ray_jobs.ensembling.weights import best_member
from ray_jobs.metrics import Floats, log_losses
from ray_jobs.result import Objective


def build_ensemble(
    predictions: Mapping[str, ArrayLike],
    y: ArrayLike,
    groups: ArrayLike,
    *,
    strategy: str,
    calibration: str,
    objective: Objective,
    seed: int,
) -> Ensemble:
    """Choose and fit the way in which members become one prediction.

    Each strategy is cross-validated with all that belongs to it: weights, calibration and
    threshold are fitted without the rows they are scored on. "auto" takes the simplest within one
    standard error of the best objective, of those whose log-loss does not exceed that of the best
    member by more than one standard error. If there is none, or the one taken exceeds it when
    fitted on all rows, that member alone is taken as it is. A strategy asked for by name is kept,
    with a note if it is worse than that. A single member is "single" under every strategy.

    Standard errors are those of paired differences with whole groups as the independent units.

    Args:
        predictions: member -> P(y = 1) on the validation rows, [N]; their order has no effect.
        y: labels, [N], of both classes.
        groups: [N]; rows of one group stand in time order.
        strategy: "auto" or one of `STRATEGIES`.
        calibration: "auto" or one of `KINDS`.
        objective: f1, accuracy, auc or log_loss.
        seed: of the folds and of the bags of "greedy".

    Raises:
        ValueError: unusable predictions or labels, an unknown strategy or calibration.
    """
    if strategy not in ("auto", *STRATEGIES):
        raise ValueError(f"strategy {strategy!r} is not one of auto, {', '.join(STRATEGIES)}")
    if calibration not in ("auto", *KINDS):
        raise ValueError(f"calibration {calibration!r} is not one of auto, {', '.join(KINDS)}")
    validation = Validation.of(predictions, y, groups)
    names = list(STRATEGIES) if strategy == "auto" else [strategy]
    if len(validation.members) == 1:
        names = ["single"]
    procedures = []
    for name in names:
        label = f"single:{best_member(validation, objective)}" if name == "single" else name
        procedures.append(Procedure(label, STRATEGIES[name], calibration, objective, seed))
    safest = best_member(validation, Objective(metric="log_loss", mode="min"))
    as_it_is = Procedure(
        f"single:{safest}", lambda *_: Blend(weights={safest: 1.0}), "none", objective, seed
    )
    folds = make_folds(validation.y, validation.clusters, seed)
    if folds is None:
        procedure = as_it_is if strategy == "auto" else procedures[0]
        note = "a class has a single validation row: nothing could be cross-validated"
        return procedure.fit(validation, None).model_copy(update={"notes": (note,)})

    validation = replace(validation, clusters=folds.clusters)
    splits = make_splits(validation, folds, seed)
    trials = [procedure.cross_validate(splits) for procedure in procedures]
    reference = _log_loss(validation.predictions[safest], validation)
    chosen = _choose(trials, reference, folds, objective) if strategy == "auto" else trials[0]
    ensemble = chosen.procedure.fit(validation, folds)
    fitted = _log_loss(ensemble.predict_proba(validation.predictions), validation)
    notes = [folds.note] if folds.note else []
    if any(exceeds(score, reference, folds.clusters) for score in (chosen.log_loss, fitted)):
        lossy = (
            f"{chosen.procedure.name} exceeds the log-loss of {safest}, alone and uncalibrated, "
            "by more than one standard error"
        )
        if strategy == "auto":
            notes.append(f"{lossy}: {safest} is taken so")
            chosen = as_it_is.cross_validate(splits)
            trials = [t for t in trials if t.procedure.name != as_it_is.name] + [chosen]
            ensemble = as_it_is.fit(validation, folds)
        else:
            notes.append(lossy)
    candidates = (trial.to_candidate(folds.clusters, chosen=trial is chosen) for trial in trials)
    return ensemble.model_copy(update={"candidates": tuple(candidates), "notes": tuple(notes)})


def _choose(trials: Sequence[Trial], reference: Score, folds: Folds, objective: Objective) -> Trial:
    """The simplest trial near the best objective, of those whose log-loss is sound if any is."""
    sound = [t for t in trials if not exceeds(t.log_loss, reference, folds.clusters)] or trials
    objectives = [trial.objective for trial in sound]
    return sound[simplest_near_best(objectives, folds.clusters, objective.mode)]


def _log_loss(p: Floats, validation: Validation) -> Score:
    return Score.of_rows(log_losses(validation.y, p))
