"""A version's bundle out of the artifact store, as plain files on this machine. Nothing is loaded.

A store on the network is not believed when it lists its files: those that come are the ones that
the bundle's index names, and no more of them than a limit.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.models.bundle_files import INDEX

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

LIMIT_VARIABLE = "EMBERLINE_MAX_MODEL_MB"
_LIMIT_MB = 4096.0  # of a model's files, 10^6 bytes
_INDEX_LIMIT_BYTES = 10_000_000
_BUNDLE = "artifacts/bundle"  # where a pyfunc keeps a folder of that name
_CHUNK_BYTES = 1 << 20
_NO_NAME = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


def fetch_bundle(client: MlflowClient, name: str, version: str, folder: Path) -> Path:
    """Copy a version's bundle to `folder`, which is made; that folder.

    Raises:
        JobFailed: it is gone, holds a link, names a file outside of itself, or is too large.
        SpecError: the limit that is set is none.
        MlflowException, RequestException, ClientError: the store does not answer.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    root = client.get_model_version_download_uri(name, version).rstrip("/")
    uri = f"{root}/{_BUNDLE}"
    label = f"{name} version {version}"
    if urlsplit(root).scheme in ("", "file"):
        return _copy(label, Path(url2pathname(urlsplit(uri).path)), folder)
    repository = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    folder.mkdir(parents=True)
    _download(label, uri, repository, folder)
    _check_plain(label, folder)
    return folder


def _copy(label: str, source: Path, folder: Path) -> Path:
    if not source.is_dir():
        raise _gone(label, str(source))
    _check_plain(label, source)
    limit = _limit_bytes()
    if sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) > limit:
        raise _too_large(label, limit)
    shutil.copytree(source, folder, symlinks=True)
    _check_plain(label, folder)  # it may have been changed since
    return folder


def _download(label: str, uri: str, repository: ArtifactRepository, folder: Path) -> None:
    from ray_jobs.serving.model import check_names

    limit = _limit_bytes()
    size = _get(label, uri, repository, INDEX, folder, min(limit, _INDEX_LIMIT_BYTES))
    try:
        files = json.loads((folder / INDEX).read_bytes())["files"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise JobFailed(f"{label}: its {INDEX} is not an index of files") from None
    try:
        check_names(files)
    except JobFailed as error:
        raise JobFailed(f"{label}: {error}") from None
    for path in files:
        try:
            size += _get(label, uri, repository, path, folder, limit - size)
        except OSError as error:
            if error.errno not in _NO_NAME:
                raise
            raise JobFailed(f"{label}: its file {path[:100]} has no name of a file") from None
    # What the store has beside these is not asked for.


def _get(
    label: str, uri: str, repository: ArtifactRepository, path: str, folder: Path, limit: int
) -> int:
    """Copy one file; its bytes."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(repository, HttpArtifactRepository):
        chunks = _chunks(label, uri, repository, path)
        size = 0
        with target.open("xb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise _too_large(label, limit)
                file.write(chunk)
        return size
    if path == INDEX and not repository.list_artifacts():
        raise _gone(label, uri)
    repository.download_artifacts(path, dst_path=str(folder))
    size = target.stat().st_size
    if size > limit:
        raise _too_large(label, limit)
    return size


def _chunks(label: str, uri: str, repository: Any, path: str) -> Iterator[bytes]:
    """A file of an artifact proxy, as MLflow asks for it, but no more than is taken."""
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    with http_request(repository._host_creds, f"/{path}", "GET", stream=True) as response:
        if response.status_code == 404:
            raise _gone(label, f"{uri}/{path}")
        augmented_raise_for_status(response)
        yield from response.iter_content(_CHUNK_BYTES)


def _check_plain(label: str, folder: Path) -> None:
    """Raise JobFailed if anything in a folder is neither a file nor a folder."""
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            place = "/".join(("bundle", *path.relative_to(folder).parts))
            raise JobFailed(f"{label}: {place} is a link or no plain file; nothing of it is loaded")


def _limit_bytes() -> int:
    given = os.environ.get(LIMIT_VARIABLE) or str(_LIMIT_MB)
    try:
        limit = float(given) * 1e6
        return int(limit)
    except (ValueError, OverflowError):
        raise SpecError(f"{LIMIT_VARIABLE}={given!r} is no number of megabytes") from None


def _gone(label: str, place: str) -> JobFailed:
    return JobFailed(
        f"{label} has no bundle at {place}: it was deleted, or registered by other means than "
        "emberline's; name another with --version"
    )


def _too_large(label: str, limit: int) -> JobFailed:
    return JobFailed(
        f"{label}: its files are larger than the {limit / 1e6:g} MB that are left of the limit; "
        f"set {LIMIT_VARIABLE} if that is right"
    )
