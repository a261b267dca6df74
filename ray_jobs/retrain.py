"""Retraining: a model trained on old and new data passes the gate, or not, once for the same data.

What was done for a data digest is known by `retraining/<model>/<data digest>.json`, which is
created once and says which run trains on it, and by the audit log of promotions. So whoever
retrains again, at the same time or after a crash, takes up the same run and asks the gate once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.promote import Promotion, Refused, promote
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.result import DataSummary
from ray_jobs.run import SPEC, Run
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec, parse_spec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.winner import as_trained
from ray_jobs.tracking.evidence import open_run
from ray_jobs.tracking.exclusive import create
from ray_jobs.tracking.lease import hold
from ray_jobs.tracking.registry import (
    DATA_DIGEST_TAG,
    Registry,
    answering,
    check_exists,
)
from ray_jobs.tracking.succession import Succession

Say = Callable[[str], None]
_GATE_S = 300.0  # many times what the gate takes to read a candidate and load it
_JUDGEMENTS = ("promoted", "refused")


@dataclass(frozen=True)
class Judged:
    """What the gate has said of a version."""

    version: int
    outcome: Literal["promoted", "refused"]
    is_champion: bool  # now

    def __str__(self) -> str:
        since = "" if self.is_champion or self.outcome == "refused" else ", and replaced since"
        return f"version {self.version} of this data was {self.outcome}{since}"


@dataclass(frozen=True)
class Attempt:
    """A model's old and new data, and the run that trains on them."""

    spec: JobSpec
    run_id: str
    data: DataSummary
    judged: Judged | None = None  # what came of it, if the gate has seen it

    @property
    def model(self) -> str:
        return model_of(self.spec)


def model_of(spec: JobSpec) -> str:
    """The registered name of what a job trains."""
    return spec.tracking.model_name or spec.workload


def describe(
    workload: str,
    new: Sequence[str],
    *,
    model: str | None = None,
    config: Path | str | None = None,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    target: str | None = None,
    say: Say = lambda line: None,
) -> JobSpec:
    """The job on old and new data: the champion's own, with `new` behind its `data.added`.

    Args:
        new: paths or URIs of labelled data.
        model: its registered name; default: the workload's.
        config: a description in place of the champion's.
        overrides: `a.b=value` texts over either.
        target: where to train; default: what the description says.

    Raises:
        SpecError: the description is wrong, or has no data to add to.
        RetryableError: the registry does not answer.
    """
    with TemporaryDirectory(prefix="emberline-") as scratch:
        if config is None:
            config = _champions(model or workload, storage or "./runs", Path(scratch), say)
        if model is not None:
            overrides = [*overrides, f"tracking.model_name={model}"]
        spec = load_spec(
            workload, config=config, overrides=overrides, storage=storage, target=target
        )
    if not spec.tracking.enabled:
        raise SpecError(
            "retraining promotes what it registers: set tracking.enabled=true, or train with "
            f"emberline run {workload}"
        )
    raw = spec.model_dump(mode="json")
    raw["data"]["added"] = _extended(raw["data"]["added"], new)
    return parse_spec(raw, source="--data")


def attempt(
    spec: JobSpec, *, dry_run: bool = False, emit: Callable[..., None] = lambda *_, **__: None
) -> Attempt:
    """Prepare the data, and find or claim the run that trains on it.

    Args:
        dry_run: nothing is claimed.
        emit: told of the preparation, as `Workload.prepare` tells it.

    Raises:
        DataError: the data cannot be used.
        RetryableError: the registry or the storage does not answer.
    """
    from ray_jobs.workloads import find

    storage, model = Storage(spec.storage), model_of(spec)
    storage.check_writable()
    data = find(spec.workload).prepare(
        spec, storage=storage, num_workers=available_cpus(spec.resources), emit=emit
    )
    judged = find_judged(storage, model, data.digest)
    own = Attempt(spec, run_id_of(spec, data.digest), data, judged)
    return own if judged or dry_run else _claimed(storage, own)


def run_id_of(spec: JobSpec, data_digest: str) -> str:
    """The same data and description, the same run."""
    digest = hashlib.sha256(f"{data_digest}{spec.digest()}".encode()).hexdigest()
    return f"retrain-{digest[:16]}"


def find_judged(storage: Storage, model: str, data_digest: str) -> Judged | None:
    """What the gate has last said of a version that was trained on this data.

    Raises:
        DataError: the audit log is damaged.
        RetryableError: the registry does not answer.
    """
    if not _is_registered(storage):
        return None
    registry = Registry(storage)
    versions = _trained_on(registry, model, data_digest)
    if not versions:
        return None
    champion = registry.champion(model)
    for entry in reversed(Succession(storage, registry, model).log.read()):
        if entry.version in versions and entry.event in _JUDGEMENTS:
            outcome: Any = entry.event
            return Judged(entry.version, outcome, entry.version == champion)
    if champion in versions:  # by hand
        return Judged(champion, "promoted", is_champion=True)
    return None


def judge(run_uri: str, *, once_for_data: bool) -> Promotion:
    """Ask the gate for the version that a finished run registered. A refusal is an outcome, too.

    Args:
        once_for_data: as `pass_gate` does it.

    Raises:
        JobFailed: the run has registered none.
        PreflightError, RetryableError: as `promote` says.
    """
    run = Run.at(run_uri)
    result = run.read_result()
    if result is None or result.model is None or result.data is None:
        raise JobFailed(
            f"run {run.run_id!r} has registered no model: train it with tracking.enabled=true"
        )
    if once_for_data:
        return pass_gate(run.spec, result.data.digest, result.model.version)
    return _ask(run.spec, result.model.version)


def pass_gate(spec: JobSpec, data_digest: str, version: int) -> Promotion:
    """Ask the gate, unless it was asked for this data already. A refusal is an outcome, too.

    Raises:
        PreflightError, RetryableError: as `promote` says.
    """
    storage, model = Storage(spec.storage), model_of(spec)
    with hold(storage, f"{model}.retraining", duration_s=_GATE_S, wait_s=2 * _GATE_S):
        judged = find_judged(storage, model, data_digest)
        if judged is None:
            return _ask(spec, version)
    champion = Registry(storage).champion(model)
    outcome: Any = "unchanged" if judged.outcome == "promoted" else "refused"
    return Promotion(model, judged.version, champion, outcome)


def _ask(spec: JobSpec, version: int) -> Promotion:
    try:
        return promote(spec, model_of(spec), version)
    except Refused as refused:
        return refused.promotion


def _champions(model: str, root: str, folder: Path, say: Say) -> Path | None:
    """A file with the description that the champion was trained by, with the hyperparameters that
    a sweep has found; None while there is no champion."""
    storage = Storage(root)
    number = None
    if _is_registered(storage):
        registry = Registry(storage)
        if _is_known(registry, model):
            number = registry.champion(model)
    if number is None:
        say(f"{model!r} has no champion: the shipped description is taken")
        return None
    run = open_run(storage, registry.version(model, number))
    say(f"as version {number} of {model!r}, the champion, was trained: run {run.run_id}")
    path = folder / f"{run.run_id}.yaml"
    path.write_text(as_trained(run).spec.model_copy(update={"storage": root}).to_yaml())
    return path


def _extended(added: list[Any], new: Sequence[str]) -> list[Any]:
    """The entries of data.added and those that are new; local paths made absolute."""
    known = {entry["path"] if isinstance(entry, dict) else entry for entry in added}
    extended = list(added)
    for uri in new:
        path = uri if "://" in uri else str(Path(uri).absolute())
        if path not in known:
            known.add(path)
            extended.append(path)
    return extended


def _claimed(storage: Storage, own: Attempt) -> Attempt:
    """The attempt that was first to claim the data, unless it has failed; by default this one."""
    path = f"retraining/{own.model}/{own.data.digest}.json"
    content = {"run_id": own.run_id, "spec": own.spec.to_yaml()}
    if create(storage, path, json.dumps(content, indent=2).encode()):
        return own
    claim = json.loads(storage.read_bytes(path))
    if claim["run_id"] == own.run_id or _has_failed(storage, own.spec.workload, claim["run_id"]):
        return own
    spec = parse_spec(yaml.safe_load(claim["spec"]), source=storage.display(path))
    return Attempt(spec.model_copy(update={"storage": own.spec.storage}), claim["run_id"], own.data)


def _has_failed(storage: Storage, workload: str, run_id: str) -> bool:
    if not storage.exists(f"{workload}/{run_id}/{SPEC}"):
        return False
    result = Run.open(storage.uri, workload, run_id).read_result()
    return result is not None and result.status == "FAILED"


def _is_registered(storage: Storage) -> bool:
    """Whether there is a registry; a look would create one."""
    try:
        check_exists(storage)
    except SpecError:
        return False
    return True


def _is_known(registry: Registry, model: str) -> bool:
    from mlflow import MlflowClient

    with answering(registry.uri, "did not answer", "Once it answers, give the same command again"):
        return bool(MlflowClient(registry.uri).search_registered_models(f"name = '{model}'"))


def _trained_on(registry: Registry, model: str, data_digest: str) -> set[int]:
    from mlflow import MlflowClient

    with answering(registry.uri, "did not answer", "Once it answers, give the same command again"):
        found = MlflowClient(registry.uri).search_model_versions(
            f"name = '{model}' and tags.`{DATA_DIGEST_TAG}` = '{data_digest}'"
        )
    return {int(version.version) for version in found}
