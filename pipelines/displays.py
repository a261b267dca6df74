"""Which display follows a run: pictures of its progress for people, or JSON lines for machines."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ray_jobs import logs
from ray_jobs.container_log import tell
from ray_jobs.events import Follower
from ray_jobs.run import Run
from ray_jobs.storage import StorageUnavailable

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.progress import Display

_INTERVAL_S, _REMOTE_INTERVAL_S = 0.5, 5.0  # a look at an object store costs requests


def display(run: Run, console: Console) -> Display | Lines:
    """The run's display, to be used as a context manager."""
    if logs.is_json():
        return Lines(run)
    from pipelines.progress import Progress
    from pipelines.sweep_progress import SweepProgress

    return (SweepProgress if run.spec.sweeps else Progress)(run, console)


class Lines:
    """Tells each event of a run's journal as a JSON line. Call `poll()` often."""

    def __init__(self, run: Run):
        logs.bind(run_id=run.run_id, workload=run.spec.workload)
        self._interval_s = _INTERVAL_S if run.storage.is_local else _REMOTE_INTERVAL_S
        self._journal = Follower(run.storage, run.folder)
        self._journal.read_new()  # of an earlier attempt
        self._polled_at = 0.0
        self._waits_for = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.poll(force=True)

    def poll(self, *, force: bool = False) -> None:
        """Read what is new and tell it."""
        if not force and time.monotonic() - self._polled_at < self._interval_s:
            return
        self._polled_at = time.monotonic()
        with suppress(StorageUnavailable):  # the run says so itself, if it cannot do without
            for event in self._journal.read_new():
                tell(event)

    def waits(self, what: str) -> None:
        """Tell what the run waits for, once."""
        if what != self._waits_for:
            logs.say(what, event="waits")
        self._waits_for = what
