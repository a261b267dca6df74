"""`emberline deploy --follow`: each time the champion moves, it is deployed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.deploy import DeployOutcome
from ray_jobs.deployments.base import Say
from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, EmberlineError, RetryableError

_LONGEST_PAUSE_S = 300.0  # between attempts at what may pass


class Follower:
    """Deploys the champion whenever it moves.

    Args:
        champion: the number of the champion's version; None: there is none.
        deploy: deploys it.
        show: is given what was deployed.
        say: is told what went wrong, once.
        interval_s: between two looks.
    """

    def __init__(
        self,
        champion: Callable[[], int | None],
        deploy: Callable[[], DeployOutcome],
        *,
        show: Callable[[DeployOutcome], None],
        say: Say,
        interval_s: float,
    ):
        self._champion, self._deploy, self._show, self._say = champion, deploy, show, say
        self._interval_s = self._pause_s = interval_s
        self._settled: int | None = None  # it is deployed, or refused for good
        self._told: str | None = None

    def step(self) -> float:
        """Look, and deploy what has changed. How many seconds to wait until the next look."""
        try:
            self._look()
        except RetryableError as error:
            self._tell(f"{error}; it is tried again")
            self._pause_s = min(2 * self._pause_s, max(_LONGEST_PAUSE_S, self._interval_s))
            return self._pause_s
        self._pause_s = self._interval_s
        return self._interval_s

    def _look(self) -> None:
        champion = self._champion()
        if champion is None:
            self._tell("there is no champion yet")
            return
        if champion == self._settled:
            return
        try:
            outcome = self._deploy()
        except RetryableError:
            raise
        except EmberlineError as error:
            self._tell(f"{error}; this version is not tried again")
        else:
            self._told = None
            self._show(outcome)
        # The alias may have moved, or been moved back, meanwhile: then the next look deploys it.
        self._settled = champion

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._say(line)
        self._told = line


def follow(follower: Follower, say: Say) -> int:
    """Until SIGTERM or SIGINT. Returns the exit code."""
    with _signals() as (is_asked_to_end, was_interrupted):
        while not is_asked_to_end.is_set():
            is_asked_to_end.wait(follower.step())
        if was_interrupted.is_set():
            say("nothing is followed any more; what is deployed goes on")
            return EXIT_INTERRUPTED
        return EXIT_OK


@contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Events of SIGTERM or SIGINT, and of SIGINT: a deployment that is going on is not cut off."""
    is_asked_to_end, was_interrupted = threading.Event(), threading.Event()

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT:
            was_interrupted.set()
        is_asked_to_end.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_asked_to_end, was_interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
