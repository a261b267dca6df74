"""What the Kubernetes API says of a RayJob, parsed at the edge.

Source: KubeRay v1.7.0, "RayJob" (ray.io/v1): `status.jobDeploymentStatus` is of the RayJob as a
whole, `status.jobStatus` of the Ray job in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ray_jobs.result import Status

PREFIX = "emberline/"  # of labels and annotations

_WAITING = ("", "Initializing", "Waiting", "Suspending", "Suspended", "Retrying", "Scheduling",
            "Scheduled")  # fmt: skip
_ENDED_AS: dict[str, Status] = {
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
    "STOPPED": "STOPPED",
}
_UNDER_WAY = ("", "PENDING", "RUNNING")
_FAILED = ("Failed", "ValidationFailed")
_EXIT_CODE = re.compile(r"failed with exit code (-?\d{1,9})")  # Ray's words, in its job supervisor
_MAX_WORDS = 200


@dataclass(frozen=True)
class RayJobState:
    """A RayJob at one look."""

    status: Status
    deployment: str = ""  # KubeRay's own word
    reason: str = ""  # KubeRay's own word for a failure, such as DeadlineExceeded
    message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None  # of the driver, where Ray tells it
    num_failed: int = 0  # attempts
    uid: str | None = None
    is_deleting: bool = False
    fault: str | None = None  # why it could not be read; the status is then FAILED

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED_AS.values()


def parse_rayjob(found: object) -> RayJobState:
    """The state of a RayJob; of what is none, a FAILED one that says what is odd."""
    try:
        return _parse(found)
    except ValueError as error:
        return RayJobState(
            "FAILED",
            fault=f"the Kubernetes API says of it what no KubeRay of this version would: {error}",
        )


def identity_of(found: object) -> dict[str, str]:
    """Whose RayJob it is: this project's annotations, and its `name`. Empty for what is none."""
    metadata = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return {}
    annotations = metadata.get("annotations")
    own = {
        key: value
        for key, value in (annotations if isinstance(annotations, dict) else {}).items()
        if isinstance(value, str) and key.startswith(PREFIX)
    }
    return {**own, "name": metadata["name"]}


def made_at(found: object) -> datetime | None:
    """When a RayJob was made."""
    try:
        return _time(_object(_object(found, "it").get("metadata"), "it"), "creationTimestamp")
    except ValueError:
        return None


def _parse(found: Any) -> RayJobState:
    """Raises ValueError: says what is odd."""
    metadata = _object(_object(found, "the answer").get("metadata"), "its metadata")
    # KubeRay may not have looked at it yet.
    status = _object(found["status"], "its status") if found.get("status") is not None else {}
    job, deployment, reason, message = (
        _text(status, name) for name in ("jobStatus", "jobDeploymentStatus", "reason", "message")
    )
    kind = _kind(job, deployment)
    if kind is None:
        raise ValueError(f"jobDeploymentStatus {_short(deployment)} with jobStatus {_short(job)}")
    has_ended = kind in _ENDED_AS.values()
    started, ended = (_time(status, name) for name in ("startTime", "endTime"))
    code = _EXIT_CODE.search(message)
    failed, uid = status.get("failed"), metadata.get("uid")
    return RayJobState(
        status=kind,
        deployment=deployment,
        reason=reason,
        message=message,
        started_at=started,
        ended_at=ended if has_ended else None,
        exit_code=int(code[1]) if code else None,
        num_failed=failed if isinstance(failed, int) and failed > 0 else 0,
        uid=uid if isinstance(uid, str) else None,
        is_deleting=bool(metadata.get("deletionTimestamp")),
    )


def _kind(job: str, deployment: str) -> Status | None:
    """None: the two do not go together, or one is unknown."""
    if deployment in _FAILED:
        return "FAILED"
    if deployment == "Complete":
        return _ENDED_AS.get(job)
    if job not in _UNDER_WAY and job not in _ENDED_AS:
        return None
    if deployment in _WAITING:
        return "PENDING"
    if deployment == "Running":  # a job that has ended is not judged yet: it may be tried again
        return "PENDING" if job in ("", "PENDING") else "RUNNING"
    return None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a {type(value).__name__}")
    return value


def _text(status: dict[str, Any], name: str) -> str:
    value = status.get(name) or ""
    if not isinstance(value, str):
        raise ValueError(f"its status.{name} is a {type(value).__name__}")
    return value


def _time(status: dict[str, Any], name: str) -> datetime | None:
    text = _text(status, name)
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError(f"its status.{name} is {_short(text)}")
    return time


def _short(text: str) -> str:
    return repr(text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}…")
