"""Which version of a model is the champion: one mover at a time, each move audited, and a champion
at every moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray_jobs.errors import PreflightError, RetryableError
from ray_jobs.storage import Storage
from ray_jobs.tracking.audit import AuditLog, Entry, Event
from ray_jobs.tracking.lease import Lease, hold
from ray_jobs.tracking.registry import Registry


@dataclass(frozen=True)
class Succession:
    """The champions of one model.

    Every method raises:
        RetryableError: the registry or the storage does not answer, or others hold the lease.
        DataError: the audit log is damaged.
    """

    storage: Storage
    registry: Registry
    model: str

    @property
    def log(self) -> AuditLog:
        return AuditLog(self.storage, self.model)

    def advance(self, version: int, *, seen: int | None, detail: Mapping[str, Any] = {}) -> bool:
        """Make a version the champion if that is still `seen`: compare and set. False if it is the
        champion already.

        Raises:
            RetryableError: another version has become the champion, too.
        """
        with hold(self.storage, self.model) as lease:
            self._settle()
            champion = self.registry.champion(self.model)
            if champion == version:
                return False
            if champion != seen:
                self.log.append("outrun", version, champion)
                raise RetryableError(
                    f"{_named(champion)} became the champion of {self.model!r} while version "
                    f"{version} was judged against {_named(seen)}; give the same command again to "
                    "compare it with that one"
                )
            self._move(lease, version, champion, "promoted", detail)
        return True

    def go_back(self) -> tuple[int, int | None]:
        """Make the champion before this one the champion again: which, and which it was.

        Raises:
            PreflightError: there was none before.
        """
        with hold(self.storage, self.model) as lease:
            self._settle()
            champion = self.registry.champion(self.model)
            line = line_of(self.log.read())
            if line and line[-1] == champion:  # else it was moved by hand: the log's last is next
                line.pop()
            if not line:
                raise PreflightError(
                    f"{self.model!r} has had no champion before {_named(champion)}, so there is "
                    f"none to go back to; promote one: emberline promote {self.model} --version N"
                )
            target = self.registry.version(self.model, line[-1]).number  # whether it is there
            self._move(lease, target, champion, "rolled_back")
        return target, champion

    def settle(self) -> None:
        """Write down what became of a move whose mover was cut off."""
        if unsettled(self.log.read()) is not None:
            with hold(self.storage, self.model):
                self._settle()

    def _move(
        self,
        lease: Lease,
        version: int,
        champion: int | None,
        event: Literal["promoted", "rolled_back"],
        detail: Mapping[str, Any] = {},
    ) -> None:
        """Say what is meant, do it, say that it is done: who is cut off between is settled by the
        next."""
        log = self.log
        intent = log.append("intent", version, champion, detail={"to": event, **detail})
        lease.check()
        self.registry.make_champion(self.model, version)
        log.append(event, version, champion, intent=intent.number)

    def _settle(self) -> None:
        log = self.log
        intent = unsettled(log.read())
        if intent is None:
            return
        is_done = self.registry.champion(self.model) == intent.version
        event: Event = intent.detail["to"] if is_done else "abandoned"
        log.append(
            event,
            intent.version,
            intent.champion,
            intent=intent.number,
            detail={"settled_by_the_next": True},
        )


def unsettled(entries: list[Entry]) -> Entry | None:
    """The intent that nothing was heard of since: whoever wrote it was cut off."""
    settled = {entry.intent for entry in entries}
    intents = [entry for entry in entries if entry.event == "intent"]
    return intents[-1] if intents and intents[-1].number not in settled else None


def line_of(entries: list[Entry]) -> list[int]:
    """The champions up to now, the latest last; what was rolled back is not among them."""
    line: list[int] = []
    for entry in entries:
        if entry.event == "promoted":
            # One that was made champion by hand stands in no entry but the next one's.
            if entry.champion is not None and line[-1:] != [entry.champion]:
                line.append(entry.champion)
            line.append(entry.version)
        elif entry.event == "rolled_back":
            while line[-1] != entry.version:
                line.pop()
    return line


def _named(champion: int | None) -> str:
    return "no champion" if champion is None else f"version {champion}"
