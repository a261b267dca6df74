"""Which version of a model is the champion: one mover at a time, each move audited, and a champion
at every moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import PreflightError, RetryableError
from ray_jobs.storage import Storage
from ray_jobs.tracking.audit import AuditLog, Entry, Event, Move
from ray_jobs.tracking.lease import Lease, hold
from ray_jobs.tracking.registry import Registry


@dataclass(frozen=True)
class Standing:
    """Who is the champion: as the registry has it, and as the audit log has it."""

    champion: int | None
    audited: int | None

    @property
    def is_moved_by_hand(self) -> bool:
        return self.champion != self.audited


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
        return AuditLog(self.storage, self.model, self.registry)

    def advance(self, version: int, *, seen: int | None, detail: Mapping[str, Any] = {}) -> bool:
        """Make a version the champion if that is still `seen`: compare and set. False if it is the
        champion already.

        Raises:
            RetryableError: another version has become the champion, too.
        """
        with hold(self.storage, self.model) as lease:
            standing = self._settled()
            champion = standing.champion
            if champion == version:
                if standing.is_moved_by_hand:  # while it was judged
                    self.log.append("moved_by_hand", version, standing.audited, detail=detail)
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
            standing = self._settled()
            champion = standing.champion
            line = line_of(self.log.read())
            if line and line[-1] == champion:  # else it was moved by hand: the log's last is next
                line.pop()
            if not line:
                raise PreflightError(
                    f"{self.model!r} has had no champion before {_named(champion)}, so there is "
                    f"none to go back to; promote one: emberline promote {self.model} --version N"
                )
            target = self.registry.version(self.model, line[-1]).number  # whether it is there
            if standing.is_moved_by_hand:
                self.log.append("moved_by_hand", champion, standing.audited)
            self._move(lease, target, champion, "rolled_back")
        return target, champion

    def look(self) -> Standing:
        """Who is the champion. What became of a move whose mover was cut off is written down."""
        entries = self.log.read()
        standing = Standing(self.registry.champion(self.model), audited_champion(entries))
        if unsettled(entries) is None and not standing.is_moved_by_hand:
            return standing
        with hold(self.storage, self.model):  # else it may be a move that is under way
            return self._settled()

    def glance(self) -> Standing:
        """As `look`, but nothing is written; a move that is under way counts as made."""
        entries = self.log.read()
        champion, intent = self.registry.champion(self.model), unsettled(entries)
        if intent is not None and intent.version == champion:
            return Standing(champion, champion)
        return Standing(champion, audited_champion(entries))

    def accept(self, seen: Standing, detail: Mapping[str, Any]) -> bool:
        """Write down a move that was made by hand; False if that is not how it stands any more."""
        with hold(self.storage, self.model):
            if self._settled() != seen:
                return False
            self.log.append("moved_by_hand", seen.champion, seen.audited, detail=detail)
        return True

    def revert(self, seen: Standing, to: int | None, detail: Mapping[str, Any]) -> bool:
        """Undo a move that was made by hand; False if that is not how it stands any more."""
        with hold(self.storage, self.model) as lease:
            if self._settled() != seen:
                return False
            self._move(lease, to, seen.champion, "reverted", detail)
        return True

    def _move(
        self,
        lease: Lease,
        version: int | None,
        champion: int | None,
        event: Move,
        detail: Mapping[str, Any] = {},
    ) -> None:
        """Say what is meant, do it, say that it is done: who is cut off between is settled by the
        next."""
        log = self.log
        intent = log.append("intent", version, champion, detail={"to": event, **detail})
        lease.check()
        if version is None:
            self.registry.remove_champion(self.model)
        else:
            self.registry.make_champion(self.model, version)
        log.append(event, version, champion, intent=intent.number)

    def _settled(self) -> Standing:
        """How it stands, under the lease, once what was cut off is written down."""
        log = self.log
        entries = log.read()
        champion, intent = self.registry.champion(self.model), unsettled(entries)
        if intent is not None:
            event: Event = intent.detail["to"] if champion == intent.version else "abandoned"
            entry = log.append(
                event,
                intent.version,
                intent.champion,
                intent=intent.number,
                detail={"settled_by_the_next": True},
            )
            entries = [*entries, entry]
        return Standing(champion, audited_champion(entries))


def unsettled(entries: list[Entry]) -> Entry | None:
    """The intent that nothing was heard of since: whoever wrote it was cut off."""
    settled = {entry.intent for entry in entries}
    intents = [entry for entry in entries if entry.event == "intent"]
    return intents[-1] if intents and intents[-1].number not in settled else None


def audited_champion(entries: list[Entry]) -> int | None:
    """The champion by what was written down last."""
    made = ("promoted", "rolled_back", "reverted", "moved_by_hand")
    return next((entry.version for entry in reversed(entries) if entry.event in made), None)


def line_of(entries: list[Entry]) -> list[int]:
    """The champions up to now, the latest last; what was rolled back is not among them."""
    line: list[int] = []
    for entry in entries:
        if entry.event in ("promoted", "moved_by_hand"):
            # One that was made champion by hand may stand in no entry but the next one's.
            before = [entry.champion] if entry.event == "promoted" else []
            for version in (*before, entry.version):
                if version is not None and line[-1:] != [version]:
                    line.append(version)
        elif entry.event == "rolled_back":
            while line[-1] != entry.version:
                line.pop()
    return line


def _named(champion: int | None) -> str:
    return "no champion" if champion is None else f"version {champion}"
