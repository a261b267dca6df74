"""Rollouts: one deployment at a time, and of those asked for meanwhile one more a model."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ray_jobs.errors import EmberlineError, RetryableError

_NUM_TOLD = 20
PAUSES_S = (1.0, 5.0, 25.0)  # before what may pass is tried again


@dataclass(frozen=True)
class Deployed:
    """What a deployment came to."""

    version: int | None  # None: there is no champion, and nothing was changed
    warning: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One that has ended."""

    model: str
    started_at: str  # ISO 8601, UTC
    seconds: float
    status: Literal["SUCCEEDED", "FAILED"]
    version: int | None = None
    reason: str | None = None  # of a failure
    warning: str | None = None


class Rollouts:
    """Deployments as they are asked for. `deploy` finds out by itself which version is meant, so
    that it does not matter how often it is asked, nor in which order.

    Args:
        champion: the number of a champion's version. It is looked at now and then: an event may
            have been lost, as MLflow's server learns of a new webhook only after a minute.
        interval_s: between two such looks.
        pauses_s: before what may pass is tried again.
    """

    def __init__(
        self,
        deploy: Callable[[str], Deployed],
        champion: Callable[[str], int | None],
        say: Callable[[str], None],
        *,
        interval_s: float,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ):
        self._deploy, self._champion, self._say = deploy, champion, say
        self._interval_s, self._pauses_s = interval_s, pauses_s
        # By model the champion that is deployed or refused for good; none: it is to be tried again.
        self._settled: dict[str, int | None] = {}
        self._models: set[str] = set()
        self._lookout = ""  # what the last look could not see
        self._pending: dict[str, None] = {}  # in the order that they were asked for
        self._asked = asyncio.Event()
        self._current: str | None = None
        self._ended: deque[Rollout] = deque(maxlen=_NUM_TOLD)

    def ask(self, model: str) -> None:
        """Have the champion of a model deployed, after what is under way."""
        self._models.add(model)
        self._pending[model] = None
        self._asked.set()

    def status(self) -> dict[str, Any]:
        """What is under way, what is to come, and the last that have ended, the newest first."""
        return {
            "deploying": self._current,
            "pending": list(self._pending),
            "deployments": [asdict(rollout) for rollout in reversed(self._ended)],
        }

    async def run(self) -> None:
        """Carry out what is asked for, until cancelled. Ends with whatever no user has caused."""
        next_look = time.monotonic() + self._interval_s
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), next_look - time.monotonic())
            if time.monotonic() >= next_look:
                await self._look()
                next_look = time.monotonic() + self._interval_s
            while self._pending:
                self._current = next(iter(self._pending))
                del self._pending[self._current]
                rollout = await self._roll_out(self._current)
                self._current = None
                self._ended.append(rollout)
                self._say(_sentence(rollout))
            self._asked.clear()

    async def _look(self) -> None:
        """Ask for those whose champion has moved, or could not be deployed last time."""
        try:
            for model in sorted(self._models):
                champion = await asyncio.to_thread(self._champion, model)
                if model not in self._settled or self._settled[model] != champion:
                    self.ask(model)
            self._lookout = ""
        except EmberlineError as error:
            if str(error) != self._lookout:
                self._say(f"the registry cannot be looked at: {error}")
            self._lookout = str(error)

    async def _roll_out(self, model: str) -> Rollout:
        started_at, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        pauses = iter(self._pauses_s)
        while True:
            self._settled.pop(model, None)
            champion = None
            try:
                champion = await asyncio.to_thread(self._champion, model)
                done = await asyncio.to_thread(self._deploy, model)
            except EmberlineError as error:
                if not isinstance(error, RetryableError):
                    self._settled[model] = champion
                pause = next(pauses, None) if isinstance(error, RetryableError) else None
                if pause is not None and model not in self._pending:  # else it comes anyway
                    self._say(f"{model}: {error} (again in {pause:g} s)")
                    await asyncio.sleep(pause)
                    continue
                seconds = round(time.monotonic() - start, 3)
                return Rollout(model, started_at, seconds, "FAILED", reason=str(error))
            self._settled[model] = done.version
            seconds = round(time.monotonic() - start, 3)
            return Rollout(
                model, started_at, seconds, "SUCCEEDED", done.version, warning=done.warning
            )


def _sentence(rollout: Rollout) -> str:
    warning = f"; warning: {rollout.warning}" if rollout.warning else ""
    if rollout.status == "FAILED":
        return f"{rollout.model}: not deployed: {rollout.reason}"
    if rollout.version is None:
        return f"{rollout.model}: there is no champion, so nothing is changed{warning}"
    return f"{rollout.model}: version {rollout.version} is deployed{warning}"
