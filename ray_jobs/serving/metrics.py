"""What Prometheus is told of the models that are served."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """Counters of one app; a process may have several apps."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "emberline_requests",
            "Requests to /invocations by the HTTP code of the answer, and by who gave it (none: "
            "refused before there was a model to ask).",
            ["code", "variant"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "emberline_request_seconds",
            "From a request's first byte to its answer.",
            ["variant"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.rows = Counter("emberline_rows", "Rows scored.", ["variant"], registry=self._registry)
        self.batch_rows = Histogram(
            "emberline_batch_rows",
            "Rows scored in one call of the model.",
            ["variant"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self.shadow_requests = Counter(
            "emberline_shadow_requests",
            "Requests that a shadow was chosen for, by what came of it: a code, or dropped since "
            "it lagged.",
            ["outcome"],
            registry=self._registry,
        )
        self.records = Counter(
            "emberline_records",
            "Requests chosen to be recorded, by what came of it: written, or why not (queue_full, "
            "daily_limit, storage, failed).",
            ["outcome"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "emberline_requests_in_flight",
            "Requests read, waiting or being scored.",
            registry=self._registry,
        )
        self.ready = Gauge("emberline_ready", "1 while /ping says 200.", registry=self._registry)
        self.model = Gauge(
            "emberline_model_info",
            "1, for each model that is served.",
            ["name", "version", "workload", "digest", "variant"],
            registry=self._registry,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class VariantMetrics:
    """Those of one variant, whose labels are looked up once and not with each request."""

    def __init__(self, metrics: Metrics, variant: str):
        self._requests, self._variant = metrics.requests, variant
        self._by_status: dict[int, Counter] = {}
        self._seconds = metrics.request_seconds.labels(variant)
        self._rows = metrics.rows.labels(variant)
        self._batch_rows = metrics.batch_rows.labels(variant)

    def observe_request(self, status: int, seconds: float) -> None:
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(str(status), self._variant)
            self._by_status[status] = counter
        counter.inc()
        self._seconds.observe(seconds)

    def observe_batch(self, num_rows: int) -> None:
        self._batch_rows.observe(num_rows)
        self._rows.inc(num_rows)
