"""The evaluation job: read the test split, once, and write down what the models score on it."""

from __future__ import annotations

from datetime import UTC, datetime

from ray_jobs.events import read_events
from ray_jobs.members import read_members
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, JobResult, MemberResult, parse_result
from ray_jobs.run import REPORT, Run
from ray_jobs.sweeping.winner import read_sweep, summarize
from ray_jobs.versions import versions

_FILE = "artifacts/evaluation.json"


def evaluate(run: Run) -> JobResult:
    """Score test, and leave the result, still RUNNING, for the last step to finish."""
    journal = run.journal("evaluate")
    with journal.phase():
        data, members = read_data(run), read_members(run)
        events = read_events(run.storage, run.folder)
        sweep = read_sweep(run)
        fields = {
            "members": members,
            "sweep": None if sweep is None else summarize(sweep),
            "warnings": _warnings(data, members, events),
            "num_skipped_batches": sum(member.num_skipped_batches for member in members),
        }
        result = JobResult(
            run_id=run.run_id,
            workload=run.spec.workload,
            status="RUNNING",
            objective=run.spec.objective,
            seed=run.spec.seed,
            data=data,
            versions=versions(),
            started_at=events[0]["time"] if events else datetime.now(UTC),
            **{**fields, **run.workload.score(run, members)},
        )
        run.storage.write_text(run.path(_FILE), result.to_json())
    return result


def render(run: Run, result: JobResult) -> None:
    """Write report.html, and sweep.html of a sweep, from a result and what the run has left."""
    sweep = read_sweep(run)
    if sweep is not None:
        from ray_jobs.sweep import write_page

        write_page(run, sweep)
    run.storage.write_text(run.path(REPORT), run.workload.render(run, result))


def read_evaluation(run: Run) -> JobResult | None:
    """What `evaluate` left, or None while it has not run."""
    path = run.path(_FILE)
    if not run.storage.exists(path):
        return None
    return parse_result(run.storage.read_bytes(path), where=run.storage.display(path))


def _warnings(data: DataSummary, members: list[MemberResult], events: list[dict]) -> list[str]:
    found = list(data.warnings)
    for member in members:
        if member.status != "SUCCEEDED":
            found.append(f"{member.name} failed: {member.reason}")
        if member.degenerate:
            found.append(f"{member.name} is degenerate: its metrics stood still and it was stopped")
        found += [f"{member.name}: {warning}" for warning in member.warnings]
    found += [
        event["message"]
        for event in events
        if event["event"] == "warning" and not {"member", "trial"} & event.keys()
    ]
    return list(dict.fromkeys(found))
