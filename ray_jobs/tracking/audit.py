"""The audit log of a model: an append-only chain of entries under `<storage>/audit/<model>/`.

Each entry is a file named by its number, created once, with the sha256 of the one before it: none
can be taken out, altered or slipped in without a trace. Where the chain ends is kept apart from it,
in the model registry, so that its end cannot be cut off either.
"""

from __future__ import annotations

import getpass
import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.errors import DataError
from ray_jobs.storage import Storage
from ray_jobs.tracking.exclusive import create

# An intent stands before the alias is moved; promoted, rolled_back, reverted or abandoned settles
# it. moved_by_hand: somebody else has moved the alias, and it stays where it is.
Move = Literal["promoted", "rolled_back", "reverted"]
Event = Literal[
    "intent", "promoted", "rolled_back", "reverted", "abandoned", "refused", "outrun",
    "moved_by_hand",
]  # fmt: skip
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
    version: int | None  # None: the alias is taken away
    champion: int | None  # that stood before
    intent: int | None = None  # the entry that this one settles
    detail: dict[str, Any] = {}


class Anchor(Protocol):
    """What keeps where the log of a model ends, `<number>:<sha256>`, apart from its files."""

    def audit_head(self, model: str) -> str | None: ...

    def set_audit_head(self, model: str, head: str) -> None: ...


@dataclass(frozen=True)
class AuditLog:
    """The entries of one model."""

    storage: Storage
    model: str
    anchor: Anchor | None = None  # None: nothing tells whether the end was cut off

    def read(self) -> list[Entry]:
        """All entries, once the chain is found whole.

        Raises:
            DataError: an entry is missing, altered, or not one; names it.
        """
        return self._read()[0]

    def append(
        self,
        event: Event,
        version: int | None,
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
                self._anchor(entry.number, hashlib.sha256(content).hexdigest())
                return entry

    def _read(self) -> tuple[list[Entry], str]:
        """All entries, and the sha256 of the last one."""
        number_kept, digest_kept = self._kept()  # before the files: these are never behind it
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
            if number == number_kept and digest != digest_kept:
                raise self._broken(number, "it is not the one that the registry knows (sha256)")
        if len(entries) < number_kept:
            raise self._broken(number_kept, "it is missing, though the registry knows of it")
        return entries, digest

    def _anchor(self, number: int, digest: str) -> None:
        """Keep that the log goes at least as far. Of writers at once a later one may be overtaken,
        or cut off before this: what is kept is behind then, until the next entry."""
        if self.anchor is not None and self._kept()[0] < number:
            self.anchor.set_audit_head(self.model, f"{number}:{digest}")

    def _kept(self) -> tuple[int, str]:
        head = self.anchor.audit_head(self.model) if self.anchor is not None else None
        number, _, digest = (head or "").partition(":")
        return (int(number) if number.isdecimal() else 0), digest

    def _broken(self, number: int, why: str) -> DataError:
        return DataError(
            f"{self.storage.display(self._path(number))}: entry {number} of the audit log of "
            f"{self.model!r}: {why}. Restore the folder from a backup, or name the storage root "
            "that the model was promoted under"
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
