"""The ensemble of a run: the members' predictions combined into one, and what it scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_jobs.errors import JobFailed
from ray_jobs.members import read_members, read_val_predictions
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, MemberResult, Metrics
from ray_jobs.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ray_jobs.ensembling.ensemble import Ensemble
    from ray_jobs.predictions import Predictions

VAL, TEST = "artifacts/predictions-val.parquet", "artifacts/predictions-test.parquet"
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
            run.storage, run.path(VAL)
        )
        run.storage.write_text(run.path(_FILE), ensemble.model_dump_json(indent=2))
    return ensemble


def read_ensemble(run: Run) -> Ensemble:
    """What `build` chose."""
    from ray_jobs.ensembling.ensemble import Ensemble

    return Ensemble.model_validate_json(run.storage.read_bytes(run.path(_FILE)))


def score(run: Run, members: list[MemberResult]) -> dict[str, Any]:
    """The fields of JobResult that say how good the ensemble and its members are."""
    from ray_jobs.predictions import Predictions

    ensemble = read_ensemble(run)
    predictions = {
        "val": Predictions.read(run.storage, run.path(VAL)),
        "test": _test_predictions(run, read_data(run), members),
    }
    return {
        "metrics": {
            split: _score(run, part, part.ensemble, ensemble.threshold)
            for split, part in predictions.items()
        },
        "members": [_with_test(run, member, predictions["test"]) for member in members],
        "ensemble": ensemble.to_result(),
    }


def _test_predictions(run: Run, data: DataSummary, members: list[MemberResult]) -> Predictions:
    """Those of an earlier attempt if it had the same members, else new ones, stored."""
    from ray_jobs.predictions import Predictions

    path = run.path(TEST)
    if run.storage.exists(path):
        stored = Predictions.read(run.storage, path)
        if stored.members.keys() == {m.name for m in members if m.status == "SUCCEEDED"}:
            return stored
    predictions = _predict_test(run, data, members)
    predictions.write(run.storage, path)
    return predictions


def _predict_test(run: Run, data: DataSummary, members: list[MemberResult]) -> Predictions:
    from ray_jobs.data.prepare import load_rows
    from ray_jobs.predictions import Predictions

    test = load_rows(run.storage, data, "test")
    probabilities: dict[str, NDArray[np.float64]] = {}
    for member in members:
        if member.status != "SUCCEEDED":
            continue
        model = run.spec.members[member.name].build()
        with run.storage.local_folder(run.path("checkpoints", member.name)) as folder:
            model.load(folder)
        probabilities[member.name] = model.predict_proba(test)
    combined = read_ensemble(run).predict_proba(probabilities)
    return Predictions(test.row_id, test.y, test.independent, combined, probabilities)


def _score(run: Run, rows: Predictions, p: NDArray[np.float64], threshold: float | None) -> Metrics:
    from ray_jobs.metrics import bootstrap_intervals

    return bootstrap_intervals(
        rows.y, p, 0.5 if threshold is None else threshold, groups=rows.group, seed=run.spec.seed
    )


def _with_test(run: Run, member: MemberResult, test: Predictions) -> MemberResult:
    p = test.members.get(member.name)
    if p is None:
        return member
    metrics = {**member.metrics, "test": _score(run, test, p, member.threshold)}
    return member.model_copy(update={"metrics": metrics})
