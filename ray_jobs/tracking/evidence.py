"""What there is to know of a version: gathered from the registry, from its run, and from the model
itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ray_jobs.data.leakage import REFUSED_AUC
from ray_jobs.errors import DataError, JobFailed
from ray_jobs.models.bundle_files import INDEX, read_index
from ray_jobs.result import DataSummary, JobResult
from ray_jobs.run import Run
from ray_jobs.storage import Storage, brief_cause
from ray_jobs.tracking.contents import content_digest, content_keys, num_common
from ray_jobs.tracking.gate import Candidate, Contender
from ray_jobs.tracking.margin import Binary, Decoded, Scored
from ray_jobs.tracking.registry import TEST_DIGEST_TAG, Registry, Version
from ray_jobs.tracking.signing import DIGEST_TAG, SIGNATURE_TAG, Statement, index_digest, verify

_NUM_CALLS = 7  # of the model, after one to warm up: the median counts


def open_run(storage: Storage, version: Version) -> Run:
    """The run that a version comes from.

    Raises:
        SpecError: it is not under this storage root.
    """
    return Run.open(storage.uri, version.workload, version.run_id)


def gather_tested(storage: Storage, version: Version) -> Contender:
    """What a version said of its test rows.

    Raises:
        SpecError: its run is not under this storage root.
        DataError: its dataset or its predictions are gone or damaged.
        ValueError: its result is not one.
    """
    run = open_run(storage, version)
    data = _data(_result(run))
    with _there(version):
        content = content_digest(content_keys(version.workload, storage, data, "test"))
        return _tested(run, version, data, content)


def gather(storage: Storage, registry: Registry, version: Version) -> Candidate:
    """All that the gate asks of a candidate. Loads the model, once its files are found as signed.

    Raises:
        As `gather_tested`.
        RetryableError: the registry does not answer.
    """
    run = open_run(storage, version)
    result = _result(run)
    data = _data(result)
    with _there(version):
        test = content_keys(version.workload, storage, data, "test")
        train = content_keys(version.workload, storage, data, "train")
        tested = _tested(run, version, data, content_digest(test))
    logged = registry.metrics(version)
    return Candidate(
        tested=tested,
        objective=run.spec.objective,
        metrics=_by_split(logged),
        gives_probabilities=not isinstance(tested.said, Decoded),
        num_seen=num_common(test, train),
        record=_disagreements(version, result, data, logged),
        leaks=_leaks(run, data),
        num_duplicates=data.leakage.duplicates.num_across_splits,
        health=_health(result),
        **_inspect(registry, version),
    )


@contextmanager
def _there(version: Version) -> Iterator[None]:
    """A file that is not there, as an error that a user can read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"version {version.number} of {version.model!r} was tested on files that are gone "
            f"({brief_cause(error)}); restore them, or train it again"
        ) from None


def _tested(run: Run, version: Version, data: DataSummary, content: str) -> Contender:
    digest = version.tags[TEST_DIGEST_TAG]
    return Contender(version.number, digest, data.features, content, _said(run))


def _said(run: Run) -> Scored:
    """What the model said of test, as the run stored it."""
    from ray_jobs.class_predictions import ClassPredictions
    from ray_jobs.gcode_predictions import GcodePredictions
    from ray_jobs.predictions import Predictions
    from ray_jobs.workloads.network import TEST

    path = run.path(TEST)
    if run.spec.workload == "waste":
        return ClassPredictions.read(run.storage, path)
    if run.spec.workload == "gcode":
        tolerance = run.spec.value_tolerance.parsed()
        return Decoded(GcodePredictions.read(run.storage, path), tolerance)
    from ray_jobs.ensemble import read_ensemble

    threshold = read_ensemble(run).threshold
    return Binary(Predictions.read(run.storage, path), 0.5 if threshold is None else threshold)


def _result(run: Run) -> JobResult:
    result = run.read_result()
    if result is None:
        raise JobFailed(
            f"run {run.run_id!r} has no result; take it up again with --run-id {run.run_id}"
        )
    return result


def _data(result: JobResult) -> DataSummary:
    assert result.data is not None, "only evaluated runs are registered"
    return result.data


def _inspect(registry: Registry, version: Version) -> dict[str, Any]:
    """The fields of Candidate that the model's files decide."""
    with TemporaryDirectory(prefix="emberline-promote-") as scratch:
        try:
            bundle = registry.download(version, Path(scratch))
        except JobFailed as error:
            return {"size_mb": None, "latency_ms": None, "artifact": str(error)}
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        artifact, signature = _artifact_fault(bundle), _signature_fault(bundle, version)
        latency_ms = None
        if artifact is None and signature is None:  # else nothing of it is loaded
            try:
                latency_ms = _latency_ms(bundle)
            except JobFailed as error:
                artifact = str(error)
    return {
        "size_mb": size / 1e6,
        "latency_ms": latency_ms,
        "artifact": artifact,
        "signature": signature,
    }


def _artifact_fault(bundle: Path) -> str | None:
    try:
        read_index(bundle)
    except JobFailed as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # another shape
        return f"the model's file {INDEX} is not an index of files"
    return None


def _signature_fault(bundle: Path, version: Version) -> str | None:
    signature = version.tags.get(SIGNATURE_TAG)
    if signature is None:
        return f"it is not signed: it lacks the tag {SIGNATURE_TAG}; train and register it again"
    if not (bundle / INDEX).is_file():
        return f"the model's file {INDEX} is missing"
    found = index_digest(bundle)
    if version.tags.get(DIGEST_TAG) != found:
        return (
            f"its {INDEX} has sha256 {found[:12]}, but {version.tags.get(DIGEST_TAG, 'none')[:12]} "
            "was registered: it was altered since; train and register it again"
        )
    try:
        verify(Statement(version.model, version.run_id, found), signature)
    except JobFailed as error:
        return str(error)
    return None


def _latency_ms(bundle: Path) -> float:
    """Of the model's own example, as it is served.

    Raises:
        JobFailed: the model is refused.
    """
    from ray_jobs.serving.model import load_model

    scorer = load_model(bundle).scorer
    example = scorer.example()
    scorer.score([example])
    seconds = []
    for _ in range(_NUM_CALLS):
        start = time.perf_counter()
        scorer.score([example])
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)


def _by_split(logged: dict[str, float]) -> dict[str, dict[str, float]]:
    """`test.f1` and the like by split; intervals and curves are other things."""
    splits: dict[str, dict[str, float]] = {"val": {}, "test": {}}
    for key, value in logged.items():
        split, _, name = key.partition(".")
        if split in splits and not name.endswith((".low", ".high")):
            splits[split][name] = value
    return splits


def _disagreements(
    version: Version, result: JobResult, data: DataSummary, logged: dict[str, float]
) -> list[str]:
    """Where the registry says other than the run's own result."""
    found = []
    if version.tags[TEST_DIGEST_TAG] != data.splits["test"].digest:
        found.append(f"the tag {TEST_DIGEST_TAG} is not the run's")
    for split in ("val", "test"):
        for name, metric in result.metrics.get(split, {}).items():
            value = logged.get(f"{split}.{name}")
            if value is None:
                found.append(f"{split}.{name} is not in MLflow")
            elif not math.isnan(value) and not math.isclose(value, metric.value, rel_tol=1e-9):
                found.append(
                    f"{split}.{name} is {value:.6g} in MLflow, {metric.value:.6g} in result.json"
                )
    return found


def _leaks(run: Run, data: DataSummary) -> list[str]:
    """Columns that give the label away, and that the spec keeps on purpose."""
    kept = getattr(run.spec.data, "allow_leaks", ())
    return [
        leak.column
        for leak in data.leakage.columns
        if leak.column in kept and (leak.auc is None or leak.auc >= REFUSED_AUC)
    ]


def _health(result: JobResult) -> list[str]:
    found = []
    for member in result.members:
        if member.status != "SUCCEEDED":
            found.append(f"{member.name} failed: {member.reason}")
        if member.degenerate:
            found.append(f"{member.name} is degenerate: its metrics stood still")
    return found
