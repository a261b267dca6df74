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

    On a local storage they share `events.jsonl`. An object store cannot append: there each writer
    keeps its own `events-<step>.jsonl`, rewritten at most every 10 s and when it closes.
    """

    def __init__(self, storage: Storage, folder: str, step: str):
        self._storage = storage
        self._step = step
        self._path = f"{folder}/{FILE}" if storage.is_local else f"{folder}/events-{step}.jsonl"
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
    names = [path for path in storage.list(folder) if path.rpartition("/")[2].startswith("events")]
    events = []
    for name in names:
        for line in storage.read_text(name).splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted(events, key=lambda event: event["time"])


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
