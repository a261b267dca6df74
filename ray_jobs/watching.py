"""Watching a run: each new event of its journal, told while this process is at the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_jobs.events import Follower
from ray_jobs.logs import say
from ray_jobs.run import Run
from ray_jobs.storage import brief_cause

Take = Callable[[Mapping[str, Any]], None]
_INTERVAL_S, _REMOTE_INTERVAL_S = 1.0, 5.0  # a look at an object store costs requests


@contextmanager
def watched(run: Run, takers: Collection[Take], steps: Collection[str] = ()) -> Iterator[None]:
    """Pass each new event to the takers, one after the other, in a thread of its own. Without any
    there is no thread.

    Args:
        steps: whose events; none: all. Other jobs may be at other steps of the same run.
    """
    if not takers:
        yield
        return
    ended = threading.Event()
    journal = Follower(run.storage, run.folder)
    interval_s = _INTERVAL_S if run.storage.is_local else _REMOTE_INTERVAL_S

    def look() -> None:
        for event in journal.read_new():
            if not steps or event.get("step") in steps:
                for take in takers:
                    take(event)

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(interval_s)
            try:
                look()
            except OSError as error:  # the storage: the next look tells what this one missed
                say(f"[emberline] warning: no progress: {brief_cause(error)}", level="warning")

    journal.read_new()  # of an earlier attempt
    thread = threading.Thread(target=follow, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
