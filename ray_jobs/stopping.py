"""Asking a run to stop where it can be taken up again: by SIGTERM, or by an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ray_jobs.run import Run

T = TypeVar("T")


@contextmanager
def sigterm_asks_to_stop(run: Run) -> Iterator[None]:
    """A machine that is taken back gives notice by SIGTERM, to a pipeline's step as to a job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: run.request_stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def wait_or_stop(run: Run, work: Callable[[], T]) -> T:
    """Do work that other processes carry out. An interrupt asks them to stop with a checkpoint; a
    second one does not wait for that."""
    # Not in the main thread: there Ray takes SIGINT for itself and leaves no time for a checkpoint.
    pool = ThreadPoolExecutor(1)
    working = pool.submit(work)
    try:
        return working.result()
    except KeyboardInterrupt:
        run.request_stop()
        return working.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
