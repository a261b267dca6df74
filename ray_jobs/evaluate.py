"""The evaluation job: read the test split, once, and write down what the ensemble and its
members score on it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ray_jobs.ensemble import read_ensemble
from ray_jobs.events import read_events
from ray_jobs.members import read_history, read_members
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, JobResult, MemberResult, Metrics, parse_result
from ray_jobs.run import REPORT, Run
from ray_jobs.versions import versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ray_jobs.predictions import Predictions

_FILE = "artifacts/evaluation.json"
VAL, TEST = "artifacts/predictions-val.parquet", "artifacts/predictions-test.parquet"


def evaluate(run: Run) -> JobResult:
    """Score test, and leave the result, still RUNNING, for the last step to finish.

    The test predictions are stored with the first reading; a repeated step scores those.
    """
    from ray_jobs.predictions import Predictions

    journal = run.journal("evaluate")
    with journal.phase():
        ensemble, data = read_ensemble(run), read_data(run)
        members = read_members(run)
        predictions = {
            "val": Predictions.read(run.storage, run.path(VAL)),
            "test": _test_predictions(run, data, members),
        }
        events = read_events(run.storage, run.folder)
        result = JobResult(
            run_id=run.run_id,
            workload=run.spec.workload,
            status="RUNNING",
            objective=run.spec.objective,
            seed=run.spec.seed,
            metrics={
                split: _score(run, part, part.ensemble, ensemble.threshold)
                for split, part in predictions.items()
            },
            members=[_with_test(run, member, predictions["test"]) for member in members],
            ensemble=ensemble.to_result(),
            data=data,
            versions=versions(),
            warnings=_warnings(data, members, events),
            started_at=events[0]["time"] if events else datetime.now(UTC),
        )
        run.storage.write_text(run.path(_FILE), result.to_json())
    return result


def render(run: Run, result: JobResult) -> None:
    """Write report.html from a result and what the run has left so far."""
    from ray_jobs.predictions import Predictions
    from ray_jobs.reporting.report import render_report

    paths = {"val": run.path(VAL), "test": run.path(TEST)}
    predictions = {
        split: Predictions.read(run.storage, path)
        for split, path in paths.items()
        if run.storage.exists(path)
    }
    histories = {name: read_history(run, name) for name in run.spec.members}
    report = render_report(
        result, predictions=predictions, histories=histories, spec_yaml=run.spec.to_yaml()
    )
    run.storage.write_text(run.path(REPORT), report)


def read_evaluation(run: Run) -> JobResult | None:
    """What `evaluate` left, or None while it has not run."""
    path = run.path(_FILE)
    if not run.storage.exists(path):
        return None
    return parse_result(run.storage.read_bytes(path), where=run.storage.display(path))


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


def _warnings(data: DataSummary, members: list[MemberResult], events: list[dict]) -> list[str]:
    found = list(data.warnings)
    for member in members:
        if member.status != "SUCCEEDED":
            found.append(f"{member.name} failed: {member.reason}")
        if member.degenerate:
            found.append(f"{member.name} is degenerate: its metrics stood still and it was stopped")
        found += [f"{member.name}: {warning}" for warning in member.warnings]
    found += [event["message"] for event in events if event["event"] == "warning"]
    return list(dict.fromkeys(found))
