"""Service: the champion, and maybe a challenger beside it, behind one queue."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from ray_jobs.monitoring.recorder import Recorder
from ray_jobs.monitoring.records import Record
from ray_jobs.serving.errors import RequestError
from ray_jobs.serving.metrics import Metrics, VariantMetrics
from ray_jobs.serving.model import Model
from ray_jobs.serving.routing import Role, is_chosen
from ray_jobs.serving.variants import Challenger, Scored, Variant, check_fit, new_thread, warm

_NUM_PARSERS = 2
_MAX_SHADOWS = 64  # requests that a shadow has not answered yet
_MAX_SHADOW_BYTES = 64 << 20  # of their bodies, which are held
_WAITING_ROWS = 4  # times the most of a request: held until they are recorded

State = Literal["loading", "ready", "draining"]


@dataclass
class Exchange:
    """A request as it comes to be known, and when it began."""

    start: float  # of time.perf_counter
    is_probe: bool = False  # of who watches this server, not of a client
    request_id: str | None = None  # None: none that is valid
    variant: Variant | None = None  # who is to answer; None: nobody can yet
    body: bytes | None = None
    media_type: str = ""
    scored: Scored | None = None


class Service:
    """Answers the bodies of requests with the bodies of answers.

    Args:
        load: gives the champion; called in its scoring thread.
        limits: fields of Limits that differ from the model's own.
        challenger: another model for the same requests.
        recorder: keeps requests and answers; started and closed here.
        private_port: whoever asks there is not a client.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        limits: Mapping[str, Any] | None = None,
        *,
        challenger: Challenger | None = None,
        recorder: Recorder | None = None,
        private_port: int | None = None,
    ):
        self.metrics = Metrics()
        self.private_port = private_port
        self.loading: asyncio.Task[None]
        self.challenger = challenger
        self._recorder = recorder
        self._limits = dict(limits or {})
        self._loads: dict[Role, Callable[[], Model]] = {"champion": load}
        if challenger is not None:
            self._loads["challenger"] = challenger.load
        self._threads = {role: new_thread(role) for role in self._loads}
        self._parsers = ThreadPoolExecutor(_NUM_PARSERS, thread_name_prefix="parsing")
        self._variants: dict[Role, Variant] = {}
        self._shadows: set[asyncio.Task[None]] = set()
        self._shadow_bytes = 0
        self._is_draining = False
        self._in_flight = 0

    # Life

    def start(self) -> None:
        """Begin to load. To be called in the event loop."""
        self.loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        models = {
            role: await loop.run_in_executor(self._threads[role], warm, load)
            for role, load in self._loads.items()
        }
        champion = models["champion"]
        if "challenger" in models:
            check_fit(champion, models["challenger"])
        # What is there now stays: looking it through for garbage would hold up a request.
        gc.collect()
        gc.freeze()
        self.limits = replace(champion.scorer.limits, **self._limits)
        if self._recorder is not None:
            self._recorder.start(
                max_waiting_rows=_WAITING_ROWS * self.limits.max_rows,
                count=lambda outcome: self.metrics.records.labels(outcome).inc(),
            )
        self._variants = {role: self._variant(role, model) for role, model in models.items()}
        self.metrics.ready.set(self.state == "ready")

    def _variant(self, role: Role, model: Model) -> Variant:
        labels = (model.name, model.version, model.workload, model.digest, role)
        self.metrics.model.labels(*labels).set(1)
        metrics = VariantMetrics(self.metrics, role)
        return Variant(role, model, self.limits, self._threads[role], self._parsers, metrics)

    def drain(self) -> None:
        """Say to /ping that no more requests are wanted; those that come are still answered."""
        self._is_draining = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        """End. What was recorded is written first."""
        self.loading.cancel()
        for shadow in self._shadows:
            shadow.cancel()
        for thread in (*self._threads.values(), self._parsers):
            thread.shutdown(wait=False, cancel_futures=True)
        if self._recorder is not None:
            self._recorder.close()
        gc.unfreeze()

    @property
    def state(self) -> State:
        if self._is_draining:
            return "draining"
        return "ready" if self._variants else "loading"

    @property
    def variants(self) -> Mapping[Role, Variant]:
        """The champion, and the challenger where there is one.

        Raises:
            RequestError: they are still being loaded.
        """
        if not self._variants:
            raise RequestError(
                503, "the model is still being loaded; ask again when /ping says 200"
            )
        return self._variants

    @property
    def model(self) -> Model:
        """The champion.

        Raises:
            RequestError: it is still being loaded.
        """
        return self.variants["champion"].model

    # Requests

    def route(self, request_id: str) -> Variant:
        """Who is to answer a request.

        Raises:
            RequestError: nobody can yet.
        """
        variants, settings = self.variants, self.challenger
        if settings is None or settings.mode == "shadow":
            return variants["champion"]
        is_other = is_chosen(request_id, settings.weight, "split")
        return variants["challenger" if is_other else "champion"]

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

    def finish(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Count and record an answer to a client, and ask the shadow.

        Args:
            seconds: from the request's first byte to its answer.
        """
        variant = exchange.variant
        if exchange.is_probe:
            return
        if variant is None or exchange.request_id is None:
            self.metrics.requests.labels(str(status), "none").inc()
            return
        variant.metrics.observe_request(status, seconds)
        self._record(exchange, variant, status, seconds)
        # Of what was refused the shadow would say the same; who is overloaded is not asked twice.
        if self._has_shadow and status in (200, 500) and exchange.body is not None:
            self._ask_shadow(exchange, exchange.request_id, exchange.body)

    # The shadow

    @property
    def _has_shadow(self) -> bool:
        return self.challenger is not None and self.challenger.mode == "shadow"

    def _ask_shadow(self, exchange: Exchange, request_id: str, body: bytes) -> None:
        assert self.challenger is not None
        if not is_chosen(request_id, self.challenger.weight, "shadow"):
            return
        num_bytes = self._shadow_bytes + len(body)
        if len(self._shadows) >= _MAX_SHADOWS or (self._shadows and num_bytes > _MAX_SHADOW_BYTES):
            self.metrics.shadow_requests.labels("dropped").inc()
            return
        task = asyncio.create_task(self._shadow(exchange, body))
        self._shadows.add(task)
        self._shadow_bytes = num_bytes
        task.add_done_callback(lambda done: self._forget(done, len(body)))

    def _forget(self, shadow: asyncio.Task[None], num_bytes: int) -> None:
        self._shadows.discard(shadow)
        self._shadow_bytes -= num_bytes

    async def _shadow(self, exchange: Exchange, body: bytes) -> None:
        variant = self._variants["challenger"]
        asked = replace(exchange, start=time.perf_counter(), variant=variant, scored=None)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                asked.scored = await variant.score(body, exchange.media_type)
            status = 200
        except RequestError as error:
            status = error.status
        except TimeoutError:
            status = 504
        except Exception:  # as of an answer: it is told here, for nobody waits for this one
            traceback.print_exc(file=sys.stderr)
            status = 500
        self.metrics.shadow_requests.labels(str(status)).inc()
        self._record(asked, variant, status, time.perf_counter() - asked.start, is_shadow=True)

    # Records

    def _record(
        self,
        exchange: Exchange,
        variant: Variant,
        status: int,
        seconds: float,
        *,
        is_shadow: bool = False,
    ) -> None:
        recorder, request_id, scored = self._recorder, exchange.request_id, exchange.scored
        if recorder is None or request_id is None or not recorder.wants(request_id):
            return
        scorer = variant.model.scorer
        record = Record(
            time=datetime.now(UTC),
            request_id=request_id,
            variant=variant.role,
            is_shadow=is_shadow,
            version=variant.model.version,
            digest=variant.model.digest,
            status=status,
            seconds=seconds,
            num_rows=0 if scored is None else len(scored.inputs),
        )
        if scored is None:
            recorder.offer(record)
        else:
            recorder.offer(record, lambda: scorer.observe(scored.inputs, scored.answer))
