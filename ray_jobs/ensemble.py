"""The ensemble job: combine the members' validation predictions into one calibrated prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_jobs.errors import JobFailed
from ray_jobs.members import read_members, read_val_predictions
from ray_jobs.prepare import read_data
from ray_jobs.run import Run

if TYPE_CHECKING:
    from ray_jobs.ensembling.ensemble import Ensemble

_FILE = "artifacts/ensemble.json"


def build(run: Run) -> Ensemble:
    """Choose weights, calibration and threshold on validation, from the members that can be used.

    Raises:
        JobFailed: fewer members than `ensemble.min_members` were fitted; names each one's reason.
    """
    from ray_jobs.data.prepare import load_rows
    from ray_jobs.ensembling.members import ensemble_members
    from ray_jobs.predictions import Predictions

    journal = run.journal("ensemble")
    with journal.phase():
        val = load_rows(run.storage, read_data(run), "val")
        results = read_members(run)
        found = {result.name: read_val_predictions(run, result.name) for result in results}
        predictions = {name: p for name, p in found.items() if p is not None}
        minimum = run.spec.ensemble.min_members
        if len(predictions) < minimum:
            missing = [result for result in results if result.name not in predictions]
            reasons = "; ".join(f"{member.name}: {member.reason}" for member in missing)
            raise JobFailed(
                f"{len(predictions)} of {len(results)} members were fitted, but "
                f"ensemble.min_members is {minimum} ({reasons})"
            )
        ensemble, excluded = ensemble_members(
            results,
            predictions,
            val.y,
            val.independent,
            strategy=run.spec.ensemble.strategy,
            calibration=run.spec.ensemble.calibration,
            objective=run.spec.objective,
            seed=run.spec.seed,
        )
        for name, reason in excluded.items():
            journal("warning", message=f"{name} is left out of the ensemble: {reason}")
        for note in ensemble.notes:
            journal("warning", message=note)
        combined = ensemble.predict_proba(predictions)
        Predictions(val.row_id, val.y, val.independent, combined, predictions).write(
            run.storage, run.path("artifacts/predictions-val.parquet")
        )
        run.storage.write_text(run.path(_FILE), ensemble.model_dump_json(indent=2))
    return ensemble


def read_ensemble(run: Run) -> Ensemble:
    """What `build` chose."""
    from ray_jobs.ensembling.ensemble import Ensemble

    return Ensemble.model_validate_json(run.storage.read_bytes(run.path(_FILE)))
