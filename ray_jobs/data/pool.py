"""Work on many items in several processes that end with this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ray_jobs.errors import RetryableError

MAX_CHUNK = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_unordered(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None,
    *,
    min_for_pool: int = 2,
    max_chunk: int = MAX_CHUNK,
    advice: str = "",
) -> Generator[tuple[int, list[Result]], None, None]:
    """Results of chunks of items as they are done, each with the index of its first item.

    Close the iterator to stop the workers.

    Args:
        function: a module's own function, or a partial of one: it is pickled.
        num_workers: processes; default: one per CPU that this process may use.
        min_for_pool: fewer items are done here: a process takes seconds to start.
        max_chunk: items a process takes at a time. Whoever closes the iterator waits for them.
        advice: what to try when a worker is killed.

    Raises:
        RetryableError: a worker was killed.
    """
    num_workers = min(num_workers or _num_cpus(), max(len(items), 1))
    chunk = max(1, min(max_chunk, len(items) // (8 * num_workers)))
    if num_workers == 1 or len(items) < min_for_pool:
        for start in range(0, len(items), chunk):
            yield start, [function(item) for item in items[start : start + chunk]]
        return
    # Spawned, not forked: the caller may have threads (Ray, a display) whose locks would freeze.
    pool = ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        tasks = {
            pool.submit(_map, function, items[start : start + chunk]): start
            for start in range(0, len(items), chunk)
        }
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    except BrokenProcessPool:
        raise RetryableError(
            "a process that prepares data was killed, perhaps for memory: run again, with "
            f"fewer of them (resources.num_cpus){advice}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a pool's worker has a parent"
    parent.join()
    os._exit(1)
