"""`emberline serve`: a registered model behind HTTP, on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ray_jobs.storage import Storage
from ray_jobs.tracking.models import LocatedModel, download, find_model


def serve(storage: str, name: str, version: str | None, host: str, port: int) -> int:
    """Serve a version of a model until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        SpecError: there is no such model or version.
        PreflightError: the port cannot be had, or there is no key to trust.
        JobFailed: the model is refused.
        RetryableError: the registry or its artifact store cannot be reached.
    """
    from ray_jobs import serve as server

    model, folder = fetch(storage, name, version)
    print(f"model {model}", file=sys.stderr)
    return server.serve(
        folder,
        host=host,
        port=port,
        name=model.name,
        version=str(model.version),
        digest=folder.name,
    )


def fetch(storage: str, name: str, version: str | None) -> tuple[LocatedModel, Path]:
    """A version of a model, and its bundle as a local folder that is named by its digest.

    Raises:
        SpecError: there is no such model or version.
        PreflightError: there is no key to trust.
        JobFailed: its files are not what was registered and signed.
        RetryableError: the registry or its artifact store cannot be reached.
    """
    root = Storage(storage)
    model = find_model(root, name, version)
    return model, download(model, _cache(root))


def _cache(storage: Storage) -> Path:
    """Where models are kept: beside the runs, or, where those are elsewhere, in the user's cache
    (XDG Base Directory Specification)."""
    if storage.is_local and os.access(storage.local(), os.W_OK):
        return storage.local(".models")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emberline" / "models"
