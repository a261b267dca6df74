"""Deliveries that came before: each is taken once, also by another receiver and after a restart.

Each is a file `.webhook/deliveries/<timestamp>-<sha256>`, created once and removed when its
timestamp is too old to be taken anyway: so there are never more than come within that time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ray_jobs.storage import Storage
from ray_jobs.tracking.exclusive import create
from ray_jobs.webhooks.signature import WINDOW_S, Delivery

_FOLDER = ".webhook/deliveries"


@dataclass(frozen=True)
class Deliveries:
    """What came, by storage root."""

    storage: Storage

    def take(self, delivery: Delivery, now: float) -> bool:
        """Whether it comes for the first time.

        Args:
            now: seconds since 1970.

        Raises:
            StorageUnavailable, StorageRefused: it cannot be written down, so it is not taken.
        """
        digest = hashlib.sha256(delivery.id.encode()).hexdigest()
        if not create(self.storage, f"{_FOLDER}/{delivery.timestamp}-{digest}", b""):
            return False
        self._forget(now - 2 * WINDOW_S)
        return True

    def _forget(self, before: float) -> None:
        for path in self.storage.list(_FOLDER):
            timestamp = path.rpartition("/")[2].partition("-")[0]
            if timestamp.isdecimal() and int(timestamp) < before:
                self.storage.delete(path)
