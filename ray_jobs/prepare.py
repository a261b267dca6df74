"""The preparation job: the spec's data, read or simulated, checked, split, and stored once."""

from __future__ import annotations

from ray_jobs.errors import DataError
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.result import DataSummary
from ray_jobs.run import Run

_FILE = "artifacts/data.json"


def prepare(run: Run) -> DataSummary:
    """Prepare the run's data, or find it prepared, and note in the run where it lies.

    Raises:
        DataError: the data cannot be used as the spec asks.
    """
    journal = run.journal("prepare")
    with journal.phase():
        summary = run.workload.prepare(
            run.spec,
            storage=run.storage,
            num_workers=available_cpus(run.spec.resources),
            emit=journal,
        )
        run.storage.write_text(run.path(_FILE), summary.model_dump_json(indent=2))
        counts = {split: part.num_rows for split, part in summary.splits.items()}
        journal("prepared", digest=summary.digest, num_rows=counts, warnings=summary.warnings)
    return summary


def read_data(run: Run) -> DataSummary:
    """What `prepare` noted.

    Raises:
        DataError: the run has not been prepared.
    """
    path = run.path(_FILE)
    if not run.storage.exists(path):
        raise DataError(f"run {run.run_id!r} has no prepared data; run its prepare step first")
    return DataSummary.model_validate_json(run.storage.read_bytes(path))
