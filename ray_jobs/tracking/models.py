"""Models in MLflow's registry: which version is meant, and its bundle as a local folder."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.models.bundle_files import INDEX, read_index
from ray_jobs.run import SPEC
from ray_jobs.storage import Storage
from ray_jobs.tracking.artifacts import fetch_bundle
from ray_jobs.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    RUN_ID_TAG,
    WORKLOAD_TAG,
    answering,
    check_exists,
    masked,
    quieten,
    tracking_uri,
)
from ray_jobs.tracking.signing import DIGEST_TAG, SIGNATURE_TAG, Statement, index_digest, verify

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

    from ray_jobs.sections import JobSpec

_NUM_TOLD = 10  # versions in a message
_NUM_KEPT = 10  # bundles on this machine, beside those of the last day
_KEPT_S = 86400.0
_BUNDLE_NAME = re.compile(r"[0-9a-f]{64}")
_SILENCE = (
    "did not answer",
    "Look at MLFLOW_TRACKING_URI and the server; then give the same command again",
)


@dataclass(frozen=True)
class LocatedModel:
    """A version of a registered model."""

    name: str
    version: int
    alias: str | None  # by which it was found; None: by its number
    run_id: str | None  # of MLflow
    tags: Mapping[str, str]
    registry: str  # where it is registered

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        alias = f" ({self.alias})" if self.alias else ""
        return f"{self.name} version {self.version}{alias}"


def find_model(storage: Storage, name: str, version: int | str | None = None) -> LocatedModel:
    """A version of a model.

    Args:
        version: its number or an alias; None: the champion, or else the challenger.

    Raises:
        SpecError: there is none such; lists what there is.
        RetryableError: the registry cannot be reached.
    """
    check_exists(storage)
    uri = tracking_uri(storage)
    quieten()
    from mlflow import MlflowClient

    with answering(uri, *_SILENCE):
        client = MlflowClient(uri)
        model = _registered(client, name, uri)
        number, alias = _chosen(client, model, version)
        found = client.get_model_version(name, number)
        return LocatedModel(name, int(number), alias, found.run_id or None, dict(found.tags), uri)


def description_of(storage: Storage, model: LocatedModel, overrides: Sequence[str] = ()) -> JobSpec:
    """The job description of the run that a version comes from.

    Args:
        overrides: `a.b=value` texts over it.

    Raises:
        SpecError: that run is not under this storage root, or the description is wrong.
    """
    from ray_jobs.spec import load_spec

    workload, run_id = model.tags.get(WORKLOAD_TAG), model.tags.get(RUN_ID_TAG)
    path = f"{workload}/{run_id}/{SPEC}"
    if not workload or not run_id or not storage.exists(path):
        raise SpecError(
            f"the run of {model} is not under {storage.uri!r}, and with it its job description: "
            "name one with --config"
        )
    return load_spec(
        workload, config=storage.display(path), overrides=overrides, storage=storage.uri
    )


def download(model: LocatedModel, folder: Path) -> Path:
    """The bundle of a model, as a folder below `folder` that is named by its digest. What is there
    already, and whole, is not fetched again. Nothing of it is loaded.

    Raises:
        JobFailed: it is not signed by a trusted key, has no bundle, another than was signed, or a
            link in it.
        PreflightError: there is no key to trust.
        RetryableError: the registry or its artifact store cannot be reached.
    """
    digest = _signed_digest(model)
    target = folder / digest
    if not _is_whole(target):
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f"{uuid.uuid4().hex}.tmp"
        try:
            bundle = _fetch(model, staging)
            _check_index(model, bundle, digest)
            shutil.rmtree(target, ignore_errors=True)
            try:
                bundle.rename(target)
            except OSError:  # somebody else was sooner
                if not _is_whole(target):
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    os.utime(target)  # it was asked for now
    _prune(folder)
    return target


def _prune(folder: Path) -> None:
    """Remove the bundles that were not asked for of late, but for the last few and those that a
    process serves."""
    old = time.time() - _KEPT_S
    found = [path for path in folder.iterdir() if _BUNDLE_NAME.fullmatch(path.name)]
    asked_at = {path: path.stat().st_mtime for path in found if path.exists()}
    candidates = [
        path
        for path in sorted(asked_at, key=asked_at.__getitem__, reverse=True)[_NUM_KEPT:]
        if asked_at[path] < old
    ]
    if not candidates:
        return
    served = _served()
    for path in candidates:
        if path.name not in served:
            shutil.rmtree(path, ignore_errors=True)  # another process may do the same


def _served() -> str:
    """The command lines of all processes: a server's names the folder of its model."""
    import psutil

    return "\n".join(
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    )


# Which version


def _registered(client: MlflowClient, name: str, uri: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    names = ", ".join(sorted(model.name for model in client.search_registered_models()))
    raise SpecError(
        f"no model {name!r} is registered at {masked(uri)}; there is "
        f"{names or 'none: train one first'}"
    )


def _chosen(
    client: MlflowClient, model: RegisteredModel, version: int | str | None
) -> tuple[str, str | None]:
    """The number of the version, and the alias that led to it."""
    aliases = {alias: str(number) for alias, number in model.aliases.items()}
    if version is None:
        for alias in (CHAMPION, CHALLENGER):
            if alias in aliases:
                return aliases[alias], alias
    elif str(version) in aliases:
        return aliases[str(version)], str(version)
    found = client.search_model_versions(f"name = '{model.name}'")
    numbers = sorted((int(one.version) for one in found), reverse=True)
    if version is not None and str(version).isdecimal() and int(version) in numbers:
        return str(int(version)), None
    wanted = (
        f"neither a {CHAMPION} nor a {CHALLENGER}" if version is None else f"no version {version!r}"
    )
    told = ", ".join(map(str, numbers[:_NUM_TOLD])) + ", ..." * (len(numbers) > _NUM_TOLD)
    also = "".join(f", {alias} ({number})" for alias, number in sorted(aliases.items()))
    raise SpecError(
        f"model {model.name!r} has {wanted}; there is {told or 'none'}{also}. Name one with "
        "--version"
    )


# Its files


def _fetch(model: LocatedModel, folder: Path) -> Path:
    """A copy of the bundle, made of plain files."""
    quieten()
    from mlflow import MlflowClient

    with answering(model.registry, *_SILENCE):
        client = MlflowClient(model.registry)
        return fetch_bundle(client, model.name, str(model.version), folder)


def _signed_digest(model: LocatedModel) -> str:
    """Of its index: sha256, for which whoever registered it has signed."""
    missing = [tag for tag in (SIGNATURE_TAG, DIGEST_TAG, RUN_ID_TAG) if tag not in model.tags]
    if missing:
        raise JobFailed(
            f"{model} is not signed: it lacks the tag {missing[0]}; train and register it again, "
            "or name another with --version"
        )
    digest = model.tags[DIGEST_TAG]
    try:
        verify(Statement(model.name, model.tags[RUN_ID_TAG], digest), model.tags[SIGNATURE_TAG])
    except JobFailed as error:
        raise JobFailed(f"{model}: {error}") from None
    return digest


def _check_index(model: LocatedModel, bundle: Path, digest: str) -> None:
    found = index_digest(bundle) if (bundle / INDEX).is_file() else "none"
    if found != digest:
        raise JobFailed(
            f"{model}: its {INDEX} has sha256 {found}, but {digest} was registered: it was altered "
            "since; train and register it again, or name another with --version"
        )


def _is_whole(bundle: Path) -> bool:
    """Whether an earlier download lies there as it came."""
    if not (bundle / INDEX).is_file() or index_digest(bundle) != bundle.name:
        return False
    try:
        read_index(bundle)
    except (JobFailed, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return False
    return True
