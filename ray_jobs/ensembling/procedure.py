"""Procedure: all steps from the members' predictions to an ensemble, cross-validated as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.ensembling.calibration import choose_calibration, fit_calibration
from ray_jobs.ensembling.comparison import Score
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.ensembling.folds import Folds, make_folds
from ray_jobs.ensembling.strategies import Strategy
from ray_jobs.ensembling.validation import Validation
from ray_jobs.metrics import best_threshold, log_losses
from ray_jobs.result import Candidate, Objective


@dataclass(frozen=True)
class Split:
    """One fold held out, and folds of the rest to choose a calibration by."""

    held_rows: NDArray[np.bool_]  # [N]
    held: Validation
    train: Validation
    train_folds: Folds | None


def make_splits(validation: Validation, folds: Folds, seed: int) -> list[Split]:
    splits = []
    for train_rows, held_rows in folds:
        train = validation.take(train_rows)
        train_folds = make_folds(train.y, train.clusters, seed)
        splits.append(Split(held_rows, validation.take(held_rows), train, train_folds))
    return splits


@dataclass(frozen=True)
class Procedure:
    """Blend the members, calibrate the blend, choose the threshold for the objective."""

    name: str
    strategy: Strategy
    calibration: str  # a kind, or "auto"
    objective: Objective
    seed: int

    def fit(self, validation: Validation, folds: Folds | None) -> Ensemble:
        """Fit on all rows; `folds` of the same rows choose the calibration where it is "auto"."""
        blend = self.strategy(validation, self.objective, self.seed)
        blended = blend.predict_proba(validation.predictions)
        kind = self.calibration
        if kind == "auto":
            kind = choose_calibration(validation.y, blended, folds)
        calibration = fit_calibration(kind, validation.y, blended)
        p = calibration.apply(blended)
        threshold = best_threshold(validation.y, p, self.objective.metric)
        return Ensemble(
            strategy=self.name, blend=blend, calibration=calibration, threshold=threshold
        )

    def cross_validate(self, splits: Sequence[Split]) -> Trial:
        """Score every row by an ensemble fitted without its fold, all rows pooled.

        A mean of F1 over folds would be biased (Forman & Scholz 2010, SIGKDD Explorations 12).
        """
        num_rows = len(splits[0].held_rows)
        y = np.empty(num_rows, np.int8)
        p = np.empty(num_rows)
        called = np.empty(num_rows, bool)
        for split in splits:
            ensemble = self.fit(split.train, split.train_folds)
            y[split.held_rows] = split.held.y
            p[split.held_rows] = ensemble.predict_proba(split.held.predictions)
            called[split.held_rows] = p[split.held_rows] >= ensemble.threshold
        return Trial(
            self,
            log_loss=Score.of_rows(log_losses(y, p)),
            objective=Score.of_objective(y, p, called, self.objective.metric),
        )


@dataclass(frozen=True)
class Trial:
    """What a procedure scored on rows that it was not fitted on."""

    procedure: Procedure
    log_loss: Score
    objective: Score

    def to_candidate(self, clusters: NDArray[np.int64], *, chosen: bool) -> Candidate:
        return Candidate(
            strategy=self.procedure.name,
            objective=self.objective.value,
            objective_stderr=self.objective.stderr(clusters),
            log_loss=self.log_loss.value,
            log_loss_stderr=self.log_loss.stderr(clusters),
            chosen=chosen,
        )
