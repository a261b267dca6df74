"""The training job: fit the members of an ensemble as Ray tasks.

`python -m ray_jobs.train --spec F` runs a whole job (prepare, members, ensemble, test, register)
wherever it is
started: by hand, by `ray job submit`, in a container. A KFP step calls `train_members` for its one
    member.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, EmberlineError
from ray_jobs.models.base import FitContext
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, JobResult, MemberResult, parse_member_result
from ray_jobs.run import Run
from ray_jobs.spec import JobSpec, load_spec

if TYPE_CHECKING:
    import numpy as np
    import ray
    from numpy.typing import NDArray

RESULT, HISTORY, VAL_PREDICTIONS = "result.json", "history.json", "val-predictions.npy"


def longest_first(spec: JobSpec, data: DataSummary) -> list[str]:
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
            if run.spec.parallel:
                references = {
                    name: remote.remote(run.uri, name, data, cpus_per_member) for name in waiting
                }
                for name, reference in references.items():
                    results[name] = _collect(run, name, reference)
            else:
                for name in waiting:
                    reference = remote.remote(run.uri, name, data, cpus_per_member)
                    results[name] = _collect(run, name, reference)
    return [results[name] for name in names]


def _collect(run: Run, name: str, reference: ray.ObjectRef[str]) -> MemberResult:
    """A task's result; a worker that died (out of memory, a kill) is a FAILED member like any
    other."""
    import ray

    try:
        return parse_member_result(
            ray.get(reference), name=name, family=run.spec.members[name].family
        )
    except ray.exceptions.RayError as error:
        result = _failed(run, name, f"its worker died: {str(error).strip().splitlines()[0]}")
        _write_member_result(run, result)
        run.journal(name)("member_ended", member=name, status="FAILED", reason=result.reason)
        return result


def _train_member(run_uri: str, name: str, data: DataSummary, num_threads: int) -> str:
    """The Ray task: fit one member, leave its files in the run, and return its result as JSON."""
    run = Run.at(run_uri)
    started = datetime.now(UTC)
    journal = run.journal(name)
    journal("member_started", member=name)
    try:
        result = fit_member(run, name, data, num_threads)
    except (EmberlineError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        run.storage.write_text(
            run.path("checkpoints", name, "traceback.txt"), traceback.format_exc()
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        result = _failed(run, name, reason)
    result = result.model_copy(
        update={
            "started_at": started,
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        }
    )
    _write_member_result(run, result)
    journal(
        "member_ended",
        member=name,
        status=result.status,
        reason=result.reason,
        seconds=result.seconds,
        metrics={key: metric.value for key, metric in result.metrics.get("val", {}).items()},
    )
    journal.flush()
    return result.model_dump_json()


def fit_member(run: Run, name: str, data: DataSummary, num_threads: int) -> MemberResult:
    """Fit one member on train, score it on validation, and publish its files under
    `checkpoints/<name>/`."""
    import numpy as np

    from ray_jobs.data.prepare import load_rows
    from ray_jobs.metrics import best_threshold, bootstrap_intervals

    config = run.spec.members[name]
    journal = run.journal(name)

    def emit(event: str, **fields: object) -> None:
        journal(event, member=name, **fields)

    context = FitContext(run.spec.seed, run.spec.objective, num_threads, emit)
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
        path=f"checkpoints/{name}",
        digests=digests,
        spec_digest=_member_digest(run, name, data),
        warnings=report.warnings,
    )


def read_member_result(run: Run, name: str) -> MemberResult:
    """What a member left: PENDING if nothing, FAILED with the reason if it cannot be read."""
    path = run.path("checkpoints", name, RESULT)
    family = run.spec.members[name].family
    if not run.storage.exists(path):
        return MemberResult(name=name, family=family, status="PENDING")
    return parse_member_result(run.storage.read_bytes(path), name=name, family=family)


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


def run_job(run: Run) -> JobResult:
    """Carry out a whole job in this process, its fits as Ray tasks."""
    from ray_jobs.ensemble import build
    from ray_jobs.evaluate import evaluate
    from ray_jobs.lifecycle import carry_out
    from ray_jobs.prepare import prepare
    from ray_jobs.register import register

    def work() -> None:
        data = prepare(run)
        train_members(run, longest_first(run.spec, data))
        build(run)
        evaluate(run)
        register(run)

    return carry_out(run, work)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.train`; prints the result as JSON, last thing on stdout. Returns the
    exit code."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.train", description=main.__doc__)
    parser.add_argument("--spec", required=True, type=Path, help="job description, YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--storage", help="root URI of all runs; default: the spec's")
    parser.add_argument("--run-id", help="take up or repeat this run; default: a new one")
    options = parser.parse_args(arguments)
    try:
        spec = load_spec(
            None, config=options.spec, overrides=options.overrides, storage=options.storage
        )
        result = run_job(Run.create(spec, options.run_id))
    except EmberlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(result.to_json())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
