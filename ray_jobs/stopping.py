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


@contextmanager
def first_signal_interrupts() -> Iterator[None]:
    """The first SIGTERM or SIGINT is a KeyboardInterrupt; those after it are ignored, so that what
    it sets off is not cut short."""

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
