"""The statuses that a training job goes through, and the times that follow from them.

Source: Amazon SageMaker AI API Reference, "DescribeTrainingJob" and "SecondaryStatusTransition".
"""

from __future__ import annotations

import math
import time
from typing import Any

_SPOT_SHARE = 0.3  # of the time is billed
_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Spot capacity was reclaimed",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}
_ON_INSTANCES = {"Downloading", "Training", "Stopping", "Uploading"}


class Timeline:
    """Where a job is, and where it has been. Times are in seconds since 1970."""

    def __init__(self) -> None:
        self.created_at = time.time()
        self.status = "InProgress"
        self.transitions: list[dict[str, Any]] = []
        self.enter("Starting")

    @property
    def secondary(self) -> str:
        return self.transitions[-1]["Status"]

    @property
    def has_ended(self) -> bool:
        return self.status in ("Completed", "Failed", "Stopped")

    def enter(self, secondary: str, status: str | None = None) -> None:
        """The next secondary status; `status` where it changes with it."""
        now = round(time.time(), 3)
        if self.transitions:
            self.transitions[-1]["EndTime"] = now
        step = {"Status": secondary, "StartTime": now, "StatusMessage": _MESSAGES[secondary]}
        self.status = status or self.status
        if self.has_ended:
            step["EndTime"] = now
        self.transitions.append(step)

    def on_instances_s(self) -> float:
        """Seconds on instances until now, all attempts together."""
        now = time.time()
        steps = (step for step in self.transitions if step["Status"] in _ON_INSTANCES)
        return sum(step.get("EndTime", now) - step["StartTime"] for step in steps)

    def describe(self, *, seconds_scale: float, is_spot: bool) -> dict[str, Any]:
        """What DescribeTrainingJob tells of it."""
        found: dict[str, Any] = {
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            "SecondaryStatusTransitions": [dict(step) for step in self.transitions],
            "CreationTime": round(self.created_at, 3),
            "LastModifiedTime": self.transitions[-1]["StartTime"],
        }
        began = [s["StartTime"] for s in self.transitions if s["Status"] in _ON_INSTANCES]
        if began:
            found["TrainingStartTime"] = began[0]
        if self.has_ended:
            found["TrainingEndTime"] = self.transitions[-1]["StartTime"]
        if self.has_ended and began:
            trained = math.ceil(self.on_instances_s() / seconds_scale)
            found["TrainingTimeInSeconds"] = trained
            billed = math.ceil(trained * _SPOT_SHARE) if is_spot else trained
            found["BillableTimeInSeconds"] = billed
        return found
