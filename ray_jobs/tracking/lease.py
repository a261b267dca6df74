"""Leases: one process at a time moves the aliases of a model.

A lease is a file `leases/<model>/<number>.json`, created once; the highest number is the one that
counts, until `<number>.released` stands beside it or it has expired. Numbers are never given back,
so that one who wakes up late finds that another has gone on (a fencing token: Kleppmann, "How to do
distributed locking", 2016).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_jobs.errors import RetryableError
from ray_jobs.storage import Storage
from ray_jobs.tracking.exclusive import create

DURATION_S = 60.0  # many times what moving an alias takes
WAIT_S = 300.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Lease:
    """A lease that is held."""

    storage: Storage
    model: str
    number: int
    expires_at: float  # seconds since 1970

    def check(self) -> None:
        """Whether it is still ours.

        Raises:
            RetryableError: it has expired, or another process has taken over.
        """
        if time.time() >= self.expires_at or _last(self.storage, self.model) != self.number:
            raise RetryableError(
                f"this process was held up for so long that its lease on {self.model!r} has "
                "expired; give the same command again"
            )


@contextmanager
def hold(
    storage: Storage, model: str, *, duration_s: float = DURATION_S, wait_s: float = WAIT_S
) -> Iterator[Lease]:
    """Hold the lease of a model, once no other process does.

    Clocks of the machines that promote may differ by much less than `duration_s`.

    Raises:
        RetryableError: others have held it all the time.
    """
    deadline = time.monotonic() + wait_s
    while True:
        lease = _try(storage, model, duration_s)
        if lease is not None:
            break
        if time.monotonic() >= deadline:
            raise RetryableError(
                f"others have been moving the aliases of {model!r} for {wait_s:g} s; give the same "
                "command again"
            )
        time.sleep(_POLL_S * random.uniform(0.5, 1.5))
    try:
        yield lease
    finally:
        create(storage, _path(model, lease.number, "released"), b"")


def _try(storage: Storage, model: str, duration_s: float) -> Lease | None:
    last = _last(storage, model)
    if last and not storage.exists(_path(model, last, "released")):
        current = json.loads(storage.read_bytes(_path(model, last)))
        if time.time() < current["expires_at"]:
            return None
    expires_at = time.time() + duration_s
    content = json.dumps({"expires_at": expires_at}).encode()
    is_ours = create(storage, _path(model, last + 1), content)
    return Lease(storage, model, last + 1, expires_at) if is_ours else None


def _last(storage: Storage, model: str) -> int:
    names = [path.rpartition("/")[2] for path in storage.list(f"leases/{model}")]
    return max((int(name[:-5]) for name in names if name.endswith(".json")), default=0)


def _path(model: str, number: int, ending: str = "json") -> str:
    return f"leases/{model}/{number:08d}.{ending}"
