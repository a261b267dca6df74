"""Which code and packages made a result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("emberline", "ray", "torch", "scikit-learn", "numpy", "kfp", "mlflow")


def versions() -> dict[str, str]:
    """Package versions, Python's, and the git commit of the code (with `+` if it has been
    changed since)."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _commit()
    return found | ({"code": commit} if commit else {})


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return os.environ.get("EMBERLINE_REVISION") or None  # of the image
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
