"""Every target by name. A new target is one file here and one line below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import SpecError

if TYPE_CHECKING:  # a job description has sections of targets: it imports this package
    from ray_jobs.targets.base import Target

_MODULES = {
    "local": "ray_jobs.targets.local",
    "ray": "ray_jobs.targets.ray",
    "rayjob": "ray_jobs.targets.rayjob",
    "sagemaker": "ray_jobs.targets.sagemaker.target",
}
NAMES = tuple(_MODULES)


def connect(name: str, spec: Any) -> Target:
    """The target of this name, with the settings of a job description, or of what has the same
    `storage` and sections; its module is imported only now.

    Raises:
        SpecError: there is none, or the description lacks what the target needs.
    """
    if name not in _MODULES:
        raise SpecError(f"no target {name!r}; there is {', '.join(NAMES)}")
    return import_module(_MODULES[name]).connect(spec)
