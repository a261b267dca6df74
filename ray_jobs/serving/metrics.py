"""What Prometheus is told of a served model."""

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
            "Requests to /invocations by the HTTP code of the answer.",
            ["code"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "emberline_request_seconds",
            "From a request's first byte to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.rows = Counter("emberline_rows", "Rows scored.", registry=self._registry)
        self.batch_rows = Histogram(
            "emberline_batch_rows",
            "Rows scored in one call of the model.",
            buckets=_ROWS,
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
            "1, for the model that is served.",
            ["name", "version", "workload", "digest"],
            registry=self._registry,
        )

    def observe_batch(self, num_rows: int) -> None:
        self.batch_rows.observe(num_rows)
        self.rows.inc(num_rows)

    def text(self) -> bytes:
        return generate_latest(self._registry)
