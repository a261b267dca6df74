"""`emberline doctor`: is this machine ready? One row a check, each failure with its fix."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import PreflightError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

_MIN_DISK_GIB = 2
_MIN_MEMORY_GIB = 4
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Examination:
    """All checks."""

    checks: list[Check]

    @property
    def exit_code(self) -> int:
        return 0 if all(check.passed for check in self.checks) else PreflightError.exit_code

    def to_json(self) -> str:
        return json.dumps([asdict(check) for check in self.checks], indent=2)

    def print(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        for check in self.checks:
            mark = "[green]ok[/]" if check.passed else "[red]failed[/]"
            fix = f"\n→ {check.fix}" if check.fix and not check.passed else ""
            table.add_row(mark, check.name, check.found + fix)
        console.print(table)


def examine(storage_uri: str) -> Examination:
    """Run every check."""
    checks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _torch,
        _memory,
        lambda: _disk(storage_uri),
        lambda: _storage(storage_uri),
        _tracking,
    ]
    return Examination([check() for check in checks])


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    passed = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check("python", passed, found, "use Python 3.11, 3.12 or 3.13: make clean setup")


def _packages() -> Check:
    """Every dependency that the project declares is installed, in a version it allows."""
    from packaging.requirements import Requirement

    faults = []
    declared = [Requirement(text) for text in requires("emberline") or []]
    for requirement in declared:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if installed not in requirement.specifier:
            faults.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    found = "; ".join(faults) or f"{len(declared)} as declared"
    return Check("packages", not faults, found, "make setup")


def _torch() -> Check:
    """torch, torchvision and numpy load together, and torch and numpy share memory."""
    try:
        import numpy as np
        import torch
        import torchvision  # noqa: F401 - fails to load if it comes from another build than torch
    except (ImportError, RuntimeError) as error:
        return Check("torch", False, str(error).splitlines()[0], "make clean setup")
    shared = torch.from_numpy(np.arange(3)).sum().item() == 3
    if torch.cuda.is_available():
        device = f"CUDA: {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "MPS"
    else:
        device = "CPU"
    found = f"torch {torch.__version__}, numpy {np.__version__}, device {device}"
    return Check("torch", shared, found, "make clean setup")


def _memory() -> Check:
    import psutil

    available = psutil.virtual_memory().available / _GIB
    return Check(
        "memory",
        available >= _MIN_MEMORY_GIB,
        f"{available:.1f} GiB available",
        f"{_MIN_MEMORY_GIB} GiB are needed: end other programs, or train fewer members at once "
        "(--set parallel=false)",
    )


def _disk(storage_uri: str) -> Check:
    storage = Storage(storage_uri)
    place = storage.local() if storage.is_local else Path.cwd()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    fix = f"{_MIN_DISK_GIB} GiB are needed: make room, or name another --storage"
    return Check("disk", free >= _MIN_DISK_GIB, f"{free:.1f} GiB free at {place}", fix)


def _storage(storage_uri: str) -> Check:
    try:
        storage = Storage(storage_uri)
        storage.check_writable()
    except PreflightError as error:
        return Check("storage", False, str(error), "name a folder or s3:// URI with --storage")
    return Check("storage", True, f"{storage.uri} is writable")


def _tracking() -> Check:
    """An MLflow server, where one is named, answers."""
    import os

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or not uri.startswith("http"):
        return Check("tracking", True, uri or "MLflow in sqlite under the storage root")
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=5):  # noqa: S310 - http(s) by the test above
            return Check("tracking", True, f"{uri} answers")
    except (URLError, TimeoutError, OSError) as error:
        fix = "start the server, or unset MLFLOW_TRACKING_URI to use sqlite"
        return Check("tracking", False, f"{uri}: {error}", fix)
