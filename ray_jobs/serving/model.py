"""The model that is served: checked before any of its files is loaded, and which one it is."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from ray_jobs.errors import JobFailed
from ray_jobs.models.bundle_files import INDEX
from ray_jobs.serving.scorer import Scorer
from ray_jobs.workloads import NAMES

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    name: str
    version: str  # as the registry counts, or the first digits of the digest
    workload: str
    digest: str  # sha256 of its index, which has those of all its files
    scorer: Scorer[Any, Any]


def load_model(
    folder: Path, *, name: str | None = None, version: str | None = None, digest: str | None = None
) -> Model:
    """Check a bundle, whole, then load it.

    Args:
        digest: the sha256 that its index must have; None: any.

    Raises:
        JobFailed: it is not the one that was asked for, or a file of it is missing, altered, a
            link, or outside of it; names the file.
    """
    from safetensors import SafetensorError

    index, found = _read_index(folder)
    if digest is not None and digest != found:
        raise JobFailed(f"the model's {INDEX} has sha256 {found}, but {digest} was asked for")
    workload = _workload(index)
    _check_files(folder, index.get("files"))
    try:
        scorer = import_module(f"ray_jobs.serving.{workload}").load(folder)
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
        zipfile.BadZipFile,
    ) as error:  # whole, but not what this version writes; skops' refusals are among them
        raise JobFailed(
            f"the model cannot be loaded by this version: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    return Model(name or workload, version or found[:12], workload, found, scorer)


def _read_index(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / INDEX
    if path.is_symlink() or not path.is_file():
        raise JobFailed(f"the model's file {INDEX} is missing; give the folder that holds it")
    content = path.read_bytes()
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JobFailed(f"the model's file {INDEX} is not JSON: {error}") from None
    if not isinstance(index, dict):
        raise JobFailed(f"the model's file {INDEX} is not an index of files")
    return index, hashlib.sha256(content).hexdigest()


def _workload(index: dict[str, Any]) -> str:
    workload = index.get("workload")
    if workload not in NAMES:
        raise JobFailed(
            f"the model's file {INDEX} names no workload that there is ({', '.join(NAMES)}); train "
            "it with this version"
        )
    return workload


def check_names(files: Any) -> None:
    """Refuse an index whose files lead out of its folder.

    Raises:
        JobFailed: one does, or has no sha256; names it.
    """
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in files.values()
    ):
        raise JobFailed(f"the model's file {INDEX} has no sha256 of each file")
    for name in files:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or str(place) != name or "\0" in name:
            raise JobFailed(f"the model's file {name} is not within its folder")


def _check_files(folder: Path, files: Any) -> None:
    """Refuse what leads out of the folder, and what the index does not name; digests are compared
    by whoever loads."""
    check_names(files)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise JobFailed(f"the model's file {name} is a link; put the file itself there")
        if not path.is_dir() and name not in files and name != INDEX:
            raise JobFailed(f"the model's file {name} is not in its {INDEX}; remove it")
