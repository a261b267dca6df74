"""Metrics of a job for Prometheus, where it runs on a Ray cluster: what its journal says, exported
by Ray itself with the metrics of its nodes, each name with `ray_` before it.

EMBERLINE_METRICS=ray turns them on, as the chart does for its RayCluster; they are the driver's, so
training costs nothing more. A gauge goes half a minute after the job, a counter stays as long as
its node.

Source: Ray, "Adding application-level metrics" (ray.util.metrics).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

VARIABLE = "EMBERLINE_METRICS"

# Name -> what it is, and its labels.
GAUGES = {
    "emberline_run_active": ("1 while a run is carried out.", ("workload", "run_id")),
    "emberline_epoch": ("Epochs that have ended.", ("workload", "run_id", "member")),
    "emberline_epoch_metric": (
        "A loss or score of the newest epoch, on validation or, as train_*, on train.",
        ("workload", "run_id", "member", "metric"),
    ),
    "emberline_samples_per_second": (
        "Trained in the newest epoch.",
        ("workload", "run_id", "member"),
    ),
    "emberline_step_seconds": (
        "That a step of the run has taken.",
        ("workload", "run_id", "step"),
    ),
}
COUNTERS = {
    "emberline_runs_total": ("Runs that have ended.", ("workload", "status")),
    "emberline_members_total": ("Members whose fit has ended.", ("workload", "status")),
    "emberline_warnings_total": ("Warnings of runs.", ("workload",)),
}


def is_on() -> bool:
    """Whether this job's metrics are asked for, and it runs on a cluster whose nodes are read."""
    return os.environ.get(VARIABLE) == "ray" and bool(os.environ.get("RAY_ADDRESS"))


class JobMetrics:
    """Those of one run; Ray is connected."""

    def __init__(self, workload: str, run_id: str):
        from ray.util import metrics

        self._labels = {"workload": workload, "run_id": run_id}
        self._gauges = {
            name: metrics.Gauge(name, about, keys) for name, (about, keys) in GAUGES.items()
        }
        self._counters = {
            name: metrics.Counter(name, about, keys) for name, (about, keys) in COUNTERS.items()
        }
        self._set("emberline_run_active", 1)

    def take(self, event: Mapping[str, Any]) -> None:
        """Note an event of the run's journal."""
        match event["event"]:
            case "epoch":
                self._take_epoch(event)
            case "step_ended":
                self._set("emberline_step_seconds", event["seconds"], step=event["step"])
            case "member_ended":
                self._count("emberline_members_total", status=event["status"])
            case "warning":
                self._count("emberline_warnings_total")

    def end(self, status: str | None) -> None:
        """Note how the run has ended; None: it goes on elsewhere."""
        self._set("emberline_run_active", 0)
        if status:
            self._count("emberline_runs_total", status=status)

    def _take_epoch(self, event: Mapping[str, Any]) -> None:
        member = event.get("member", "model")
        self._set("emberline_epoch", event["epoch"], member=member)
        if "samples_per_second" in event:
            rate = event["samples_per_second"]
            self._set("emberline_samples_per_second", rate, member=member)
        trained = {f"train_{name}": value for name, value in event.get("train", {}).items()}
        for name, value in {**event.get("metrics", {}), **trained}.items():
            self._set("emberline_epoch_metric", value, member=member, metric=name)

    def _set(self, name: str, value: Any, **labels: str) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            self._gauges[name].set(value, {**self._labels, **labels})

    def _count(self, name: str, **labels: str) -> None:
        self._counters[name].inc(1, {"workload": self._labels["workload"], **labels})
