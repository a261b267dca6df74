"""Processes of this machine, told apart even where a number has been given again."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import psutil

_CLOCK_TOLERANCE_S = 2.0  # the time of the machine's start, which all others count from, may shift
_POLL_S = 0.05


class Process(BaseModel):
    """A process, as a file can name it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    created: float  # seconds since 1970

    @classmethod
    def of(cls, pid: int | None = None) -> Process:
        """A process that is there; by default this one."""
        import psutil

        process = psutil.Process(os.getpid() if pid is None else pid)
        return cls(host=socket.gethostname(), pid=process.pid, created=process.create_time())

    @property
    def is_alive(self) -> bool:
        return self.find() is not None

    def find(self) -> psutil.Process | None:
        """It, if it is alive and on this machine."""
        import psutil

        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < _CLOCK_TOLERANCE_S
            is_alive = is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if is_alive else None

    def end(self, *, wait_s: float) -> None:
        """Wait until it has ended; kill it when the time is over."""
        if not holds_within(wait_s, lambda: not self.is_alive):
            process = self.find()
            if process is not None:
                process.kill()


@dataclass(frozen=True)
class LogPart:
    """What is written to a log from now on."""

    path: Path
    offset: int

    @classmethod
    def of(cls, path: Path) -> LogPart:
        return cls(path, path.stat().st_size if path.exists() else 0)

    def read(self) -> str:
        if not self.path.exists():
            return ""
        content = self.path.read_bytes()
        start = self.offset if self.offset <= len(content) else 0  # it was begun anew since
        return content[start:].decode("utf-8", errors="replace")


def rotate(log: Path, max_bytes: int) -> None:
    """Begin a log anew once it is too long: what it held is then in `<log>.1`. Those who write to
    it, each at its end, go on (as `copytruncate` of logrotate(8)).

    Raises:
        OSError: what it held could not be kept; it is begun anew all the same.
    """
    if not log.exists() or log.stat().st_size <= max_bytes:
        return
    try:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    finally:
        os.truncate(log, 0)


def holds_within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes to hold within a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
