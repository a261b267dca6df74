"""The audit log of a model: an append-only chain of entries under `<storage>/audit/<model>/`.

Each entry is a file named by its number, created once, with the sha256 of the one before it: none
can be taken out, altered or slipped in without a trace.
"""

from __future__ import annotations

import getpass
import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.errors import DataError
from ray_jobs.storage import Storage
from ray_jobs.tracking.exclusive import create

# An intent stands before the alias is moved; promoted, rolled_back or abandoned settles it.
Event = Literal["intent", "promoted", "rolled_back", "abandoned", "refused", "outrun"]
_FIRST = "0" * 64  # what the first entry has in place of a digest


class Entry(BaseModel):
    """One thing that was decided or done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int  # 1, 2, ...
    previous: str  # sha256 of the entry before, as its file's bytes
    time: datetime
    by: str  # user@host
    model: str
    event: Event
    version: int
    champion: int | None  # that stood before
    intent: int | None = None  # the entry that this one settles
    detail: dict[str, Any] = {}


@dataclass(frozen=True)
class AuditLog:
    """The entries of one model."""

    storage: Storage
    model: str

    def read(self) -> list[Entry]:
        """All entries, once the chain is found whole.

        Raises:
            DataError: an entry is missing, altered, or not one; names it.
        """
        return self._read()[0]

    def append(
        self,
        event: Event,
        version: int,
        champion: int | None,
        *,
        intent: int | None = None,
        detail: Mapping[str, Any] = {},
    ) -> Entry:
        """Add an entry behind the last one. Of writers at once each gets a number of its own.

        Raises:
            DataError: the chain is broken.
        """
        while True:
            entries, digest = self._read()
            entry = Entry(
                number=len(entries) + 1,
                previous=digest,
                time=datetime.now(UTC),
                by=f"{_user()}@{socket.gethostname()}",
                model=self.model,
                event=event,
                version=version,
                champion=champion,
                intent=intent,
                detail=dict(detail),
            )
            content = entry.model_dump_json(indent=2).encode()
            if create(self.storage, self._path(entry.number), content):
                return entry

    def _read(self) -> tuple[list[Entry], str]:
        """All entries, and the sha256 of the last one."""
        entries: list[Entry] = []
        digest = _FIRST
        paths = [p for p in self.storage.list(self._folder) if p.endswith(".json")]
        for number, path in enumerate(paths, start=1):
            if path != self._path(number):
                raise self._broken(number, "it is missing")
            content = self.storage.read_bytes(path)
            try:
                entry = Entry.model_validate_json(content)
            except ValidationError:
                raise self._broken(number, "it is not an entry") from None
            if (entry.number, entry.previous, entry.model) != (number, digest, self.model):
                raise self._broken(number, "it does not follow from the one before (sha256)")
            entries.append(entry)
            digest = hashlib.sha256(content).hexdigest()
        return entries, digest

    def _broken(self, number: int, why: str) -> DataError:
        return DataError(
            f"{self.storage.display(self._path(number))}: entry {number} of the audit log of "
            f"{self.model!r}: {why}. Restore the folder from a backup"
        )

    @property
    def _folder(self) -> str:
        return f"audit/{self.model}"

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "unknown"
