"""Service: one model behind a queue. It loads and scores in a thread of its own."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from ray_jobs.serving.batching import Batcher
from ray_jobs.serving.errors import BadInput, RequestError
from ray_jobs.serving.metrics import Metrics
from ray_jobs.serving.model import Model
from ray_jobs.serving.scorer import Limits

_QUICK_BYTES = 64 << 10  # of a body that is parsed sooner than it is handed to another thread
_QUICK_ROWS = 256  # of an answer that is written sooner than handed over
_NUM_PARSERS = 2

State = Literal["loading", "ready", "draining"]


class Service:
    """Answers the bodies of requests with the bodies of answers.

    Args:
        load: gives the model; called in the scoring thread.
        limits: fields of Limits that differ from the model's own.
    """

    def __init__(self, load: Callable[[], Model], limits: Mapping[str, Any] | None = None):
        self.metrics = Metrics()
        self.loading: asyncio.Task[None]
        self._load_model, self._limits = load, dict(limits or {})
        self._model: Model | None = None
        self._is_draining = False
        self._in_flight = 0
        # One, for a model is not made to be called by several threads at once.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._parsers = ThreadPoolExecutor(_NUM_PARSERS, thread_name_prefix="parsing")

    # Life

    def start(self) -> None:
        """Begin to load. To be called in the event loop."""
        self.loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        model, limits = await loop.run_in_executor(self._thread, self._warm_model)
        self.limits = limits
        self._batcher: Batcher[Any, Any] = Batcher(
            model.scorer.score,
            self._thread,
            max_batch_rows=limits.max_batch_rows,
            max_wait_s=limits.max_wait_s,
            observe=self.metrics.observe_batch,
        )
        labels = (model.name, model.version, model.workload, model.digest)
        self.metrics.model.labels(*labels).set(1)
        self._model = model
        self.metrics.ready.set(self.state == "ready")

    def _warm_model(self) -> tuple[Model, Limits]:
        model = self._load_model()
        scorer = model.scorer
        _set_num_threads(scorer.num_threads)
        scorer.render(scorer.score([scorer.example()])[0], scorer.answer_types[0], model.version)
        # What is there now stays: looking it through for garbage would hold up a request.
        gc.collect()
        gc.freeze()
        return model, replace(scorer.limits, **self._limits)

    def drain(self) -> None:
        """Say to /ping that no more requests are wanted; those that come are still answered."""
        self._is_draining = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        self.loading.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._parsers.shutdown(wait=False, cancel_futures=True)
        gc.unfreeze()

    @property
    def state(self) -> State:
        if self._is_draining:
            return "draining"
        return "loading" if self._model is None else "ready"

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            RequestError: it is still being loaded.
        """
        if self._model is None:
            raise RequestError(
                503, "the model is still being loaded; ask again when /ping says 200"
            )
        return self._model

    # Requests

    @contextmanager
    def admit(self) -> Iterator[None]:
        """A place among those that are read, waiting or being scored.

        Raises:
            RequestError: there is none.
        """
        if self._in_flight >= self.limits.max_queue:
            raise RequestError(
                429, f"{self._in_flight} requests are waiting; try again in a second"
            )
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    async def answer(self, body: bytes, media_type: str, answer_type: str) -> bytes:
        """The answer to a request.

        Raises:
            RequestError: its body cannot be scored.
        """
        model = self.model
        scorer, loop = model.scorer, asyncio.get_running_loop()
        if scorer.parses_slowly or len(body) > _QUICK_BYTES:
            inputs = await loop.run_in_executor(self._parsers, scorer.parse, body, media_type)
        else:
            inputs = scorer.parse(body, media_type)
        num_rows = len(inputs)
        if num_rows > self.limits.max_rows:
            raise BadInput(
                f"{num_rows} rows; send at most {self.limits.max_rows} at once", status=413
            )
        answer = await self._batcher.submit(inputs)
        arguments = (answer, answer_type, model.version)
        if num_rows > _QUICK_ROWS:
            return await loop.run_in_executor(self._parsers, scorer.render, *arguments)
        return scorer.render(*arguments)


def _set_num_threads(num_threads: int) -> None:
    """Of the calls of the libraries that have been loaded by now, in this thread."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(num_threads)
    torch = sys.modules.get("torch")
    if torch is not None:  # whose own count comes before OpenMP's
        torch.set_num_threads(num_threads)
