"""Checks: what each has found, or what is wrong and how to mend it; and those of the machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.storage import Storage, StorageUnavailable, brief_cause

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool | None  # None: not known, or not checked because one that it needs failed
    found: str
    fix: str = ""  # where `found` does not say it


@dataclass(frozen=True)
class Estimate:
    """What a run will take, extrapolated from a few steps."""

    num_parameters: int
    memory_bytes: int  # of each worker: on its GPU if it has one
    epoch_s: float
    total_s: float  # of all epochs


@dataclass(frozen=True)
class SweepEstimate:
    """What the trials of a sweep will take: at least, and at most."""

    num_side_by_side: int
    num_epochs: tuple[int, int]  # of all trials
    num_full_epochs: int  # if every trial were trained in full
    seconds: tuple[float, float]


@dataclass
class Checklist:
    """Checks in the order in which they were made."""

    checks: list[Check] = field(default_factory=list)
    estimate: Estimate | None = None  # of a run's training, or of one trial of its sweep in full
    sweep: SweepEstimate | None = None

    def add(self, check: Check) -> None:
        assert check.name not in [other.name for other in self.checks], check.name
        self.checks.append(check)

    def make(self, name: str, look: Callable[[], str], *, needs: Collection[str] = ()) -> None:
        """Add what `look` finds or raises; it is called if all checks in `needs` have passed."""
        missing = [need for need in needs if not self.has_passed(need)]
        if missing:
            self.add(Check(name, None, f"not checked: it needs {missing[0]}"))
            return
        try:
            self.add(Check(name, True, look()))
        except (PreflightError, SpecError) as error:
            self.add(Check(name, False, str(error)))

    def has_passed(self, name: str) -> bool:
        return any(check.passed for check in self.checks if check.name == name)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def raise_failed(self) -> None:
        """Say all that is wrong, a line each.

        Raises:
            PreflightError: a check has failed.
        """
        lines = [
            f"{check.name}: {check.found}" + (f"; {check.fix}" if check.fix else "")
            for check in self.failed
        ]
        if lines:
            raise PreflightError("\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        return {
            "checks": [asdict(check) for check in self.checks],
            "estimate": asdict(self.estimate) if self.estimate else None,
            "sweep": asdict(self.sweep) if self.sweep else None,
        }


# Packages


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    passed = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check("python", passed, found, "use Python 3.11, 3.12 or 3.13: make clean setup")


def check_packages() -> Check:
    """Every dependency that the project declares is installed, in a version it allows."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires("emberline") or []]
    except PackageNotFoundError:
        return Check("packages", False, "emberline is not installed", "make setup")
    faults = []
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


def check_torch() -> Check:
    """numpy, torch and torchvision load together, and torch and numpy share memory."""
    try:
        import numpy as np
        import torch
        import torchvision  # noqa: F401 - fails to load if it comes from another build than torch

        torch.from_numpy(np.arange(3))  # fails if torch was built for another major numpy
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        names = ("numpy", "torch", "torchvision")
        found = ", ".join(f"{name} {_installed(name)}" for name in names)
        fix = "install the three that pyproject.toml names, from one build: make clean setup"
        return Check("torch", False, f"{found} do not load together ({brief_cause(error)})", fix)
    found = f"torch {torch.__version__}, numpy {np.__version__}, device {find_device('auto')}"
    return Check("torch", True, found)


def find_device(asked: str) -> str:
    """The device to train on.

    Raises:
        PreflightError: the one asked for is not there.
    """
    import torch

    from ray_jobs.devices import choose_device

    device = choose_device(asked)
    if device.type != "cuda":
        return device.type.upper()
    num_gpus = torch.cuda.device_count()
    return f"CUDA: {torch.cuda.get_device_name()}" + (f", {num_gpus} of them" * (num_gpus > 1))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(missing)"


# Memory and disk


def check_memory(min_bytes: int) -> Check:
    """Whether a machine has enough memory free to be worth a try."""
    available = available_memory()
    return Check(
        "memory",
        available >= min_bytes,
        f"{in_gib(available)} available",
        f"{in_gib(min_bytes)} are needed: end other programs, or train fewer members at once "
        "(--set parallel=false)",
    )


def check_disk(storage_uri: str, min_bytes: int) -> Check:
    """Whether the storage's disk, or for a remote storage this folder's, has room."""
    storage = Storage(storage_uri)
    place = existing(storage.local() if storage.is_local else Path.cwd())
    free = shutil.disk_usage(place).free
    fix = f"{in_gib(min_bytes)} are needed: make room, or name another --storage"
    return Check("disk", free >= min_bytes, f"{in_gib(free)} free at {place}", fix)


def available_memory() -> int:
    """Bytes of main memory that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def in_gib(num_bytes: float) -> str:
    """`1.5 GiB`; below a tenth in MiB."""
    if num_bytes < GIB / 10:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / GIB:.1f} GiB"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`5 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# Storage and tracking


def check_storage(storage_uri: str) -> Check:
    """Whether the storage can be written."""
    try:
        storage = Storage(storage_uri)
        storage.check_writable()
    except (PreflightError, StorageUnavailable) as error:
        return Check("storage", False, str(error), "name a folder or s3:// URI with --storage")
    return Check("storage", True, f"{storage.uri} is writable")


def check_tracking() -> Check:
    """Whether the MLflow server, where one is named, answers."""
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
