"""The journal of a run: `events.jsonl`, one JSON object a line, written by every step and read by
progress displays.

Every event has `time` (UTC, ISO 8601), `step` and `event`; the rest depends on the event:

    step_started   step_ended (seconds)     progress (done, total, unit)
    member_started member_ended (status, reason, seconds)
    epoch (member, epoch, num_epochs, metrics, best, patience, learning_rate, ...)
    left_out (ids, reasons)   skipped (ids, reason)     samples and steps that were not learned from
    checkpoint, resumed (epoch, batch, name)            preflight (checks)
    trial_started, trial_epoch, trial_paused, trial_promoted, trial_resumed, trial_ended (trial)
    sweep_ended (winner, num_epochs)
    warning (message)
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ray_jobs.errors import EmberlineError
from ray_jobs.storage import Storage

FILE = "events.jsonl"
_FLUSH_INTERVAL_S = 10.0


class Journal:
    """Appends events of one step. Several processes may write to one run at the same time.

    On a local storage they share `events.jsonl`. An object store cannot append: there each writer,
    and each attempt, keeps an `events-<step>-<token>.jsonl`, rewritten at most every 10 s and when
    it closes.
    """

    def __init__(self, storage: Storage, folder: str, step: str):
        self._storage = storage
        self._step = step
        own = f"events-{step}-{secrets.token_hex(4)}.jsonl"
        self._path = f"{folder}/{FILE if storage.is_local else own}"
        self._lines: list[str] = []
        self._flushed_at = time.monotonic()

    def __call__(self, event: str, **fields: Any) -> None:
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(
            {"time": stamp, "step": self._step, "event": event, **fields}, default=str
        )
        if self._storage.is_local:
            self._storage.append_line(self._path, line)
            return
        self._lines.append(line)
        if time.monotonic() - self._flushed_at > _FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            self._storage.write_text(self._path, "\n".join(self._lines) + "\n")
        self._flushed_at = time.monotonic()

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Mark the step as begun and, whatever happens, as ended."""
        self("step_started")
        started = time.monotonic()
        failure: dict[str, Any] = {}
        try:
            yield
        except BaseException as error:
            code = (
                error.exit_code if isinstance(error, EmberlineError) else EmberlineError.exit_code
            )
            failure = {"failure": str(error) or type(error).__name__, "exit_code": code}
            raise
        finally:
            self("step_ended", seconds=round(time.monotonic() - started, 3), **failure)
            self.flush()


def read_events(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """All events of a run so far, in time order. A line that a writer has not finished is left
    out."""
    return Follower(storage, folder).read_new()


class Follower:
    """Reads a run's events as they come, each once: a long journal is not read from the start every
    time."""

    def __init__(self, storage: Storage, folder: str):
        self._storage, self._folder = storage, folder
        self._offsets: dict[str, int] = {}  # file -> bytes that have been read

    def read_new(self) -> list[dict[str, Any]]:
        """Events that were not read before, in time order. Where the storage fails, they are read
        the next time."""
        events, offsets = [], dict(self._offsets)
        for path in self._storage.list(self._folder):
            if not path.rpartition("/")[2].startswith("events"):
                continue
            content = self._content_from(path, offsets.get(path, 0))
            end = content.rfind(b"\n") + 1
            offsets[path] = offsets.get(path, 0) + end
            for line in content[:end].splitlines():
                try:
                    events.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        self._offsets = offsets
        return sorted(events, key=lambda event: event["time"])

    def _content_from(self, path: str, offset: int) -> bytes:
        if not self._storage.is_local:
            return self._storage.read_bytes(path)[offset:]
        with self._storage.local(path).open("rb") as file:
            file.seek(offset)
            return file.read()


def step_seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """Wall seconds of each step that has ended; training lasts from the first member's start to
    the last one's end."""
    seconds = {
        event["step"]: event["seconds"] for event in events if event["event"] == "step_ended"
    }
    started, ended = (
        [datetime.fromisoformat(event["time"]) for event in events if event["event"] == kind]
        for kind in ("member_started", "member_ended")
    )
    if started and ended:
        seconds["train"] = round((max(ended) - min(started)).total_seconds(), 3)
    return seconds
