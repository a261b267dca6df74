"""Every workload by name. A new workload is one file here, its job description in `configs/`, its
pipeline in `pipelines/`, and one line below."""

from __future__ import annotations

from importlib import import_module

from ray_jobs.workloads.base import Workload

_MODULES = {
    "fire": "ray_jobs.workloads.fire",
    "waste": "ray_jobs.workloads.waste",
    "gcode": "ray_jobs.workloads.gcode",
}
NAMES = tuple(_MODULES)


def find(name: str) -> Workload:
    """The workload of this name; its module is imported only now.

    Raises:
        KeyError: there is none.
    """
    return import_module(_MODULES[name]).WORKLOAD
