"""Releases: the bundle of a registered version, fetched and checked, and where it is kept."""

from __future__ import annotations

import os
from pathlib import Path

from ray_jobs.deployments.base import Release
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import download, find_model


def fetch(storage: Storage, name: str, version: int | str | None = None) -> Release:
    """A version of a model; by default the champion, or else the challenger.

    Raises:
        SpecError: there is no such model or version.
        PreflightError: there is no key to trust.
        JobFailed: its files are not what was registered and signed.
        RetryableError: the registry or its artifact store cannot be reached.
    """
    model = find_model(storage, name, version)
    return Release(model, download(model, model_cache(storage)))


def model_cache(storage: Storage) -> Path:
    """Where models are kept: beside the runs, or, where those are elsewhere, in the user's cache
    (XDG Base Directory Specification)."""
    if storage.is_local and os.access(storage.local(), os.W_OK):
        return storage.local(".models")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emberline" / "models"
