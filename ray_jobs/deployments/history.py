"""The history of deployments: a file for each change, that is never altered, under
`.history/<target>/<name>/` of the storage root."""

from __future__ import annotations

import getpass
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ray_jobs.sections import JobSpec
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Storage

_ROOT = ".history"
# interrupted: nobody waited for the end; it may go on, be there, and cost money
Event = Literal["deployed", "refused", "interrupted", "removed"]


class Change(BaseModel):
    """A change, or an attempt at one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    by: str  # user@host
    event: Event
    model: str
    versions: tuple[str, ...] = ()  # the champion first
    reason: str | None = None  # of a refusal
    spec: dict[str, Any] | None = None  # the job description that it was deployed with

    def description(self) -> JobSpec | None:
        """The job description that it was deployed with.

        Raises:
            SpecError: it is of another version.
        """
        return None if self.spec is None else parse_spec(self.spec, source="the history")


@dataclass(frozen=True)
class History:
    """The changes of one deployment."""

    storage: Storage
    target: str
    name: str

    def append(
        self,
        event: Event,
        model: str,
        versions: tuple[str, ...] = (),
        reason: str | None = None,
        spec: JobSpec | None = None,
    ) -> None:
        time = datetime.now(UTC)
        change = Change(
            time=time,
            by=_who(),
            event=event,
            model=model,
            versions=versions,
            reason=reason,
            spec=None if spec is None else spec.model_dump(mode="json"),
        )
        path = f"{self._folder}/{time:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json"
        self.storage.write_text(path, change.model_dump_json(indent=2))

    def read(self) -> list[Change]:
        """All changes, the latest last."""
        return [self._read(path) for path in self._paths()]

    def last(self) -> Change | None:
        """The latest change."""
        paths = self._paths()
        return self._read(paths[-1]) if paths else None

    def _paths(self) -> list[str]:
        return [path for path in self.storage.list(self._folder) if path.endswith(".json")]

    def _read(self, path: str) -> Change:
        return Change.model_validate_json(self.storage.read_bytes(path))

    @property
    def _folder(self) -> str:
        return f"{_ROOT}/{self.target}/{self.name}"


def standing(storage: Storage, target: str) -> dict[str, Change]:
    """The deployments that were made from this storage root and not removed since: name -> the last
    change that was carried out, or at least begun."""
    found = {}
    for folder in storage.list(f"{_ROOT}/{target}"):
        name = folder.rpartition("/")[2]
        done = [one for one in History(storage, target, name).read() if one.event != "refused"]
        if done and done[-1].event != "removed":
            found[name] = done[-1]
    return found


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
