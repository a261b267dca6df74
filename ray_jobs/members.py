"""The members of a run: fitted as Ray tasks, each leaving its files under `checkpoints/<name>/`."""

from __future__ import annotations

import hashlib
import json
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import EmberlineError, RetryableError
from ray_jobs.events import Journal
from ray_jobs.models.base import FitContext
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, MemberResult, parse_member_result
from ray_jobs.run import Run
from ray_jobs.storage import StorageRefused, brief_cause
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.workloads.fire import FireSpec

if TYPE_CHECKING:
    import numpy as np
    import ray
    from numpy.typing import NDArray

RESULT, HISTORY, VAL_PREDICTIONS = "result.json", "history.json", "val-predictions.npy"
STEPS = "steps"  # begins the name of the folder of checkpoints that a fit goes on from


def longest_first(spec: FireSpec, data: DataSummary) -> list[str]:
    """The members, those that take longest first: no long fit is left to run alone at the end."""
    num_train, num_val = data.splits["train"].num_rows, data.splits["val"].num_rows

    def seconds(name: str) -> float:
        return spec.members[name].estimate_seconds(num_train, num_val)

    return sorted(spec.members, key=seconds, reverse=True)


def train_members(run: Run, names: Sequence[str]) -> list[MemberResult]:
    """Fit members as Ray tasks: side by side as far as the CPUs go, or one after another if the
    spec says so.

    A member that was fitted before, with the same configuration on the same rows, is not fitted
    again. A member that fails is a FAILED result; it takes no other with it.

    Raises:
        RetryableError: the storage failed, which is no fault of a member.
    """
    from ray_jobs import ray_runtime

    data = read_data(run)
    waiting = []
    results: dict[str, MemberResult] = {}
    for name in names:
        earlier = read_member_result(run, name)
        if earlier.status == "SUCCEEDED" and earlier.spec_digest == _member_digest(run, name, data):
            results[name] = earlier
        else:
            waiting.append(name)
    if waiting:
        with ray_runtime.session(run.spec.resources) as cpus_per_member:
            import ray  # not before the session has set what the import reads

            remote = ray.remote(_train_member).options(num_cpus=cpus_per_member, max_retries=2)
            for batch in [waiting] if run.spec.parallel else [[name] for name in waiting]:
                references = [remote.remote(run.uri, name, data, cpus_per_member) for name in batch]
                outages = []
                for name, reference in zip(batch, references, strict=True):
                    try:
                        results[name] = _collect(run, name, reference)
                    except (RetryableError, StorageRefused) as error:
                        outages.append(error)  # the others may end well yet, and are then kept
                if outages:
                    raise outages[0]
    return [results[name] for name in names]


def _collect(run: Run, name: str, reference: ray.ObjectRef[str]) -> MemberResult:
    """A task's result; a worker that died (out of memory, a kill) is a FAILED member like any
    other."""
    import ray

    try:
        return parse_member_result(
            ray.get(reference), name=name, family=run.spec.members[name].family
        )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EmberlineError):
            raise error.cause from None
        reason = f"{type(error.cause).__name__}: {brief_cause(error.cause)}"
        return _note_failure(run, name, reason)
    except ray.exceptions.RayError as error:
        return _note_failure(run, name, f"its worker died: {str(error).strip().splitlines()[0]}")


def fail_member(run: Run, name: str, reason: str, since: datetime | None) -> None:
    """Note why a member was not fitted, on behalf of a job that could not.

    A fit that is good for the run's data is kept, and so is what the job itself has noted.

    Args:
        since: when the job was made; what was noted before is an earlier one's.
    """
    left = read_member_result(run, name)
    if left.status == "FAILED" and since and left.started_at and left.started_at >= since:
        return
    if left.status == "SUCCEEDED" and left.spec_digest == _member_digest(run, name, read_data(run)):
        return
    _note_failure(run, name, reason)


def _note_failure(run: Run, name: str, reason: str) -> MemberResult:
    result = _failed(run, name, reason)
    _write_member_result(run, result)
    journal = run.journal(name)
    journal("member_ended", member=name, status="FAILED", reason=reason)
    journal.flush()
    return result


def _train_member(run_uri: str, name: str, data: DataSummary, num_threads: int) -> str:
    """The Ray task: fit one member, leave its files in the run, and return its result as JSON."""
    run = Run.at(run_uri)
    started = datetime.now(UTC)
    journal = run.journal(name)
    journal("member_started", member=name)
    try:
        result = fit_member(run, name, data, num_threads, journal)
    except (RetryableError, StorageRefused):
        raise
    except (EmberlineError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        run.storage.write_text(
            run.path("checkpoints", name, "traceback.txt"), traceback.format_exc()
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        result = _failed(run, name, reason)
    return end_member(run, journal, result, started).model_dump_json()


def end_member(run: Run, journal: Journal, result: MemberResult, started: datetime) -> MemberResult:
    """Store a member's result with its times, and journal its end."""
    seconds = round((datetime.now(UTC) - started).total_seconds(), 3)
    result = result.model_copy(update={"started_at": started, "seconds": seconds})
    _write_member_result(run, result)
    journal(
        "member_ended",
        member=result.name,
        status=result.status,
        reason=result.reason,
        seconds=seconds,
        metrics={key: metric.value for key, metric in result.metrics.get("val", {}).items()},
    )
    journal.flush()
    return result


def fit_member(
    run: Run, name: str, data: DataSummary, num_threads: int, journal: Journal
) -> MemberResult:
    """Fit one member on train, score it on validation, and publish its files under
    `checkpoints/<name>/`."""
    import numpy as np

    from ray_jobs.data.prepare import load_rows
    from ray_jobs.metrics import best_threshold, bootstrap_intervals

    config = run.spec.members[name]

    def emit(event: str, **fields: object) -> None:
        journal(event, member=name, **fields)

    # Other data or hyperparameters under the same run id must not go on from these.
    steps = f"{STEPS}-{_member_digest(run, name, data)[:12]}"
    store = CheckpointStore(run.storage, run.path("checkpoints", name, steps), emit)
    context = FitContext(run.spec.seed, run.spec.objective, num_threads, emit, store)
    train, val = (load_rows(run.storage, data, split) for split in ("train", "val"))
    member = config.build()
    report = member.fit(train, val, context)
    p = member.predict_proba(val)
    threshold = best_threshold(val.y, p, run.spec.objective.metric)
    metrics = bootstrap_intervals(val.y, p, threshold, groups=val.independent, seed=run.spec.seed)
    with tempfile.TemporaryDirectory(prefix="emberline-") as scratch:
        folder = Path(scratch)
        member.save(folder)
        digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        np.save(folder / VAL_PREDICTIONS, p)
        (folder / HISTORY).write_text(json.dumps(report.history), encoding="utf-8")
        run.storage.publish_folder(folder, run.path("checkpoints", name))
    return MemberResult(
        name=name,
        family=config.family,
        status="SUCCEEDED",
        metrics={"val": metrics},
        threshold=threshold,
        num_parameters=report.num_parameters,
        best_epoch=report.best_epoch,
        num_epochs=report.num_epochs,
        degenerate=report.degenerate,
        num_skipped_batches=report.num_skipped_batches,
        num_failed_samples=report.num_failed_samples,
        path=f"checkpoints/{name}",
        digests=digests,
        spec_digest=_member_digest(run, name, data),
        warnings=report.warnings,
    )


def read_member_result(run: Run, name: str) -> MemberResult:
    """What a member left: PENDING if nothing, FAILED with the reason if it cannot be read."""
    path = run.path("checkpoints", name, RESULT)
    family = run.spec.families()[name]
    if not run.storage.exists(path):
        return MemberResult(name=name, family=family, status="PENDING")
    return parse_member_result(run.storage.read_bytes(path), name=name, family=family)


def read_members(run: Run) -> list[MemberResult]:
    """Every member's result, in the order of the spec."""
    return [read_member_result(run, name) for name in run.spec.families()]


def read_history(run: Run, name: str) -> list[dict[str, object]]:
    """The epochs of a member; none if it left none."""
    path = run.path("checkpoints", name, HISTORY)
    return json.loads(run.storage.read_bytes(path)) if run.storage.exists(path) else []


def read_val_predictions(run: Run, name: str) -> NDArray[np.float64] | None:
    """A member's probabilities on the validation rows, shape [N]; None if it left none that can be
    read."""
    import io

    import numpy as np

    path = run.path("checkpoints", name, VAL_PREDICTIONS)
    if not run.storage.exists(path):
        return None
    try:
        return np.load(io.BytesIO(run.storage.read_bytes(path)), allow_pickle=False)
    except ValueError:
        return None


def _write_member_result(run: Run, result: MemberResult) -> None:
    path = run.path("checkpoints", result.name, RESULT)
    run.storage.write_text(path, result.model_dump_json(indent=2, exclude_none=True))


def _failed(run: Run, name: str, reason: str) -> MemberResult:
    return MemberResult(
        name=name, family=run.spec.members[name].family, status="FAILED", reason=reason
    )


def _member_digest(run: Run, name: str, data: DataSummary) -> str:
    parts = (
        run.spec.members[name].model_dump_json(),
        run.spec.objective.model_dump_json(),
        str(run.spec.seed),
        data.digest,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
