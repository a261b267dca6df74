"""Recorder: writes live records beside the answers, which never wait for it.

Each worker writes files of its own: locally it appends to one, remotely each is a part that is
whole when it appears.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from io import FileIO
from typing import ClassVar, Literal

from ray_jobs.logs import say
from ray_jobs.monitoring.observation import Observation
from ray_jobs.monitoring.records import Record, folder_of
from ray_jobs.serving.routing import is_chosen
from ray_jobs.storage import Storage, answering

_FILE_BYTES, _PART_BYTES = 16 << 20, 1 << 20  # after which the next one is begun
_MAX_WAITING = 1000  # records
_CLOSE_S = 15.0  # that a worker waits for what is still to be written

Outcome = Literal["written", "queue_full", "daily_limit", "storage", "failed"]


@dataclass(frozen=True)
class _Waiting:
    record: Record
    observe: Callable[[], Observation] | None


class Recorder:
    """Writes records in a thread of its own. What it cannot take, it drops and counts: no answer
    waits for it.

    Args:
        name: of the deployment.
        share: 0 to 1, of the request ids, which are chosen by a hash: for each of them every
            variant's answer is kept.
        max_mb_per_day: 10^6 bytes, of all that is written for this name on a day of UTC; what other
            workers have written is looked up when a day begins.

    Raises:
        SpecError: the name cannot be a folder's.
    """

    def __init__(self, storage: Storage, name: str, *, share: float, max_mb_per_day: float):
        self._share, self._max_bytes = share, max_mb_per_day * 1e6
        self._files = (_AppendedFile if storage.is_local else _Parts)(storage, folder_of(name))
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(_MAX_WAITING)
        self._lock, self._waiting_rows, self._max_rows = threading.Lock(), 0, 0
        self._count: Callable[[Outcome], None] = lambda outcome: None
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        # In the thread: lines that are still to be written, all of one day.
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._day, self._day_bytes, self._due = date.min, 0, 0.0
        self._is_failing = False

    def start(self, *, max_waiting_rows: int, count: Callable[[Outcome], None]) -> None:
        """Begin to write.

        Args:
            max_waiting_rows: that are held in memory at once.
            count: is told what came of each record.
        """
        self._max_rows, self._count = max_waiting_rows, count
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Whether a request is among those that are kept."""
        return is_chosen(request_id, self._share, "record")

    def offer(self, record: Record, observe: Callable[[], Observation] | None = None) -> None:
        """Have a record written, with what is observed of it, in the thread."""
        with self._lock:
            has_room = self._waiting_rows + record.num_rows <= self._max_rows
            self._waiting_rows += record.num_rows * has_room
        if has_room:
            try:
                self._queue.put_nowait(_Waiting(record, observe))
                return
            except queue.Full:
                self._release(record)
        self._count("queue_full")

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._queue.put(None, timeout=_CLOSE_S)
            self._thread.join(_CLOSE_S)

    def _release(self, record: Record) -> None:
        with self._lock:
            self._waiting_rows -= record.num_rows

    # In the thread

    def _run(self) -> None:
        while True:
            try:
                seconds = max(self._due - time.monotonic(), 0) if self._lines else None
                waiting = self._queue.get(timeout=seconds)
            except queue.Empty:
                self._flush()
                continue
            if waiting is None:
                break
            self._add(waiting)
            self._release(waiting.record)
            del waiting  # its inputs are not held while the next one is awaited
        self._flush()
        self._files.close()

    def _add(self, waiting: _Waiting) -> None:
        record = waiting.record
        try:
            if waiting.observe is not None:
                seen = waiting.observe()
                said = {**seen.outputs, **seen.details}
                record = replace(record, features=seen.features, outputs=said)
            line = record.to_json().encode() + b"\n"
        except Exception:  # of one request; those to come are to be recorded
            traceback.print_exc(file=sys.stderr)
            self._count("failed")
            return
        self._begin_day(record.time.date())
        if self._day_bytes + len(line) > self._max_bytes:
            self._count("daily_limit")
            return
        if not self._lines:
            self._due = time.monotonic() + self._files.interval_s
        self._lines.append(line)
        self._num_bytes += len(line)
        self._day_bytes += len(line)
        if self._num_bytes >= _PART_BYTES:
            self._flush()

    def _begin_day(self, day: date) -> None:
        if day <= self._day:  # a clock that was set back changes nothing
            return
        self._flush()
        self._day, self._day_bytes = day, 0
        with self._telling(0):
            self._day_bytes = self._files.num_bytes(day)

    def _flush(self) -> None:
        lines, self._lines, self._num_bytes = self._lines, [], 0
        if lines:
            with self._telling(len(lines)):
                self._files.write(self._day, b"".join(lines))
                for _ in lines:
                    self._count("written")

    @contextmanager
    def _telling(self, num_records: int) -> Iterator[None]:
        """A storage that fails costs these records; it is told once, until it works again."""
        try:
            yield
        except OSError as error:
            for _ in range(num_records):
                self._count("storage")
            if not self._is_failing:
                say(f"live records are lost: {error}", level="warning")
            self._is_failing = True
        else:
            self._is_failing = False


class _Files(ABC):
    """The files of one worker."""

    interval_s: ClassVar[float]  # that a line waits at most

    def __init__(self, storage: Storage, folder: str):
        self._storage, self._folder = storage, folder

    def _new(self, day: date) -> str:
        return f"{self._folder}/{day.isoformat()}/{uuid.uuid4().hex}.jsonl"

    def num_bytes(self, day: date) -> int:
        """Of all that lies there of a day."""
        from pyarrow.fs import FileSelector

        path = self._storage.full(f"{self._folder}/{day.isoformat()}")
        with answering(self._storage.uri):
            infos = self._storage.filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return sum(info.size or 0 for info in infos)

    @abstractmethod
    def write(self, day: date, content: bytes) -> None:
        """Write whole lines."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more is written."""


class _AppendedFile(_Files):
    """A local file that grows, until it is large or the day is over."""

    interval_s = 1.0

    def __init__(self, storage: Storage, folder: str):
        super().__init__(storage, folder)
        self._day, self._file = date.min, None

    _file: FileIO | None

    def write(self, day: date, content: bytes) -> None:
        if self._file is None or day != self._day or self._file.tell() > _FILE_BYTES:
            self.close()
            path = self._storage.local(self._new(day))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._day, self._file = day, FileIO(path, "ab")
        self._file.write(content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Parts(_Files):
    """Remote files, each written whole."""

    interval_s = 30.0

    def write(self, day: date, content: bytes) -> None:
        self._storage.write_bytes(self._new(day), content)

    def close(self) -> None:
        pass  # nothing is open
