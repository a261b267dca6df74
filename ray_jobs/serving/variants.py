"""Variant: a loaded model with a scoring thread and a queue of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import JobFailed
from ray_jobs.serving.batching import Batcher
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.metrics import VariantMetrics
from ray_jobs.serving.model import Model
from ray_jobs.serving.routing import Mode, Role
from ray_jobs.serving.scorer import Limits

_QUICK_BYTES = 64 << 10  # of a body that is parsed sooner than it is handed to another thread
_QUICK_ROWS = 256  # of an answer that is written sooner than handed over


@dataclass(frozen=True)
class Challenger:
    """A second model beside the champion, and which requests it sees."""

    load: Callable[[], Model]  # called in its scoring thread
    mode: Mode
    weight: float  # 0 to 1, of the requests: that it answers, or as a shadow is asked too


@dataclass(frozen=True)
class Scored:
    """A request's body as the model took it, and what it said."""

    inputs: Any
    answer: Any


class Variant:
    """Scores bodies of requests. Made by `load_variant`."""

    def __init__(
        self,
        role: Role,
        model: Model,
        limits: Limits,
        thread: Executor,
        parsers: Executor,
        metrics: VariantMetrics,
    ):
        self.role, self.model, self.metrics = role, model, metrics
        self._limits, self._parsers = limits, parsers
        self._batcher: Batcher[Any, Any] = Batcher(
            model.scorer.score,
            thread,
            max_batch_rows=limits.max_batch_rows,
            max_wait_s=limits.max_wait_s,
            observe=metrics.observe_batch,
        )

    async def score(self, body: bytes, media_type: str) -> Scored:
        """What the model says.

        Raises:
            RequestError: the body cannot be scored.
        """
        scorer = self.model.scorer
        if scorer.parses_slowly or len(body) > _QUICK_BYTES:
            loop = asyncio.get_running_loop()
            inputs = await loop.run_in_executor(self._parsers, scorer.parse, body, media_type)
        else:
            inputs = scorer.parse(body, media_type)
        if len(inputs) > self._limits.max_rows:
            raise BadInput(
                f"{len(inputs)} rows; send at most {self._limits.max_rows} at once", status=413
            )
        return Scored(inputs, await self._batcher.submit(inputs))

    async def render(self, scored: Scored, answer_type: str) -> bytes:
        """The body of the answer."""
        arguments = (scored.answer, answer_type, self.model.version)
        if len(scored.inputs) > _QUICK_ROWS:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._parsers, self.model.scorer.render, *arguments)
        return self.model.scorer.render(*arguments)


def new_thread(role: Role) -> ThreadPoolExecutor:
    """One, for a model is not made to be called by several threads at once."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"scoring-{role}")


def warm(load: Callable[[], Model]) -> Model:
    """In a variant's thread: its model, loaded and asked once.

    Raises:
        JobFailed: it is refused.
    """
    model = load()
    scorer = model.scorer
    _set_num_threads(scorer.num_threads)
    scorer.render(scorer.score([scorer.example()])[0], scorer.answer_types[0], model.version)
    return model


def check_fit(champion: Model, challenger: Model) -> None:
    """Whether the challenger takes whatever the champion takes.

    Raises:
        JobFailed: not; says in what they differ.
    """
    if challenger.workload != champion.workload:
        raise JobFailed(
            f"the challenger is a model of {challenger.workload}, the champion one of "
            f"{champion.workload}: name a challenger of the same workload"
        )
    taken = champion.scorer.request_content()
    asked = challenger.scorer.request_content()
    if asked != taken:
        kinds = sorted(
            kind for kind in taken.keys() | asked.keys() if taken.get(kind) != asked.get(kind)
        )
        raise JobFailed(
            f"the challenger (version {challenger.version}) takes other requests than the champion "
            f"(version {champion.version}): they differ in {', '.join(kinds)}; name one that was "
            "trained on the same columns"
        )


def _set_num_threads(num_threads: int) -> None:
    """Of the calls of the libraries that have been loaded by now, in this thread."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(num_threads)
    torch = sys.modules.get("torch")
    if torch is not None:  # whose own count comes before OpenMP's
        torch.set_num_threads(num_threads)
