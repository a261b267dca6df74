"""Batcher: requests that wait together are scored in one call, by one thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import Executor
from typing import Generic, TypeVar

Inputs = TypeVar("Inputs", bound=Sized)
Answer = TypeVar("Answer")


class Batcher(Generic[Inputs, Answer]):
    """Gathers inputs while the model is at work, and gives it all of them when it is free.

    Args:
        score: the answers to several inputs; called in `thread`.
        thread: an executor of one thread.
        max_batch_rows: of a call; a longer input is a call of its own.
        max_wait_s: that an idle model waits for more.
        observe: is told the rows of each call.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Inputs]], list[Answer]],
        thread: Executor,
        *,
        max_batch_rows: int,
        max_wait_s: float = 0.0,
        observe: Callable[[int], None] = lambda num_rows: None,
    ):
        self._score, self._thread, self._observe = score, thread, observe
        self._max_batch_rows, self._max_wait_s = max_batch_rows, max_wait_s
        self._waiting: deque[tuple[Inputs, asyncio.Future[Answer]]] = deque()
        self._is_busy = False  # from the first of a batch to its answers

    def submit(self, inputs: Inputs) -> asyncio.Future[Answer]:
        """The answer to come. To be called, and cancelled, in the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((inputs, future))
        if not self._is_busy:
            self._is_busy = True
            # At the earliest in the loop's next turn, when all that has arrived by now is here.
            loop.call_later(self._max_wait_s, self._next_batch)
        return future

    def _next_batch(self) -> None:
        batch = self._take()
        self._is_busy = bool(batch)
        if not batch:
            return
        inputs = [one for one, _ in batch]
        self._observe(sum(map(len, inputs)))
        outcomes = asyncio.get_running_loop().run_in_executor(self._thread, self._outcomes, inputs)
        outcomes.add_done_callback(lambda done: self._tell(batch, done.result()))

    def _take(self) -> list[tuple[Inputs, asyncio.Future[Answer]]]:
        batch: list[tuple[Inputs, asyncio.Future[Answer]]] = []
        num_rows = 0
        while self._waiting:
            inputs, future = self._waiting[0]
            if not future.done():  # else nobody waits for it any more
                num_rows += len(inputs)
                if batch and num_rows > self._max_batch_rows:
                    break
                batch.append((inputs, future))
            self._waiting.popleft()
        return batch

    def _outcomes(self, batch: list[Inputs]) -> list[Answer | Exception]:
        """In the thread: the answers. Where a batch fails, each of its inputs is tried alone."""
        try:
            return list(self._score(batch))
        except Exception as error:  # handed on to those who wait, who would wait forever
            if len(batch) == 1:
                return [error]
        return [outcome for inputs in batch for outcome in self._outcomes([inputs])]

    def _tell(
        self,
        batch: list[tuple[Inputs, asyncio.Future[Answer]]],
        outcomes: list[Answer | Exception],
    ) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._next_batch()
