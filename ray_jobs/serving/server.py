"""The server of the app: one process, which drains before it ends."""

from __future__ import annotations

import signal
import socket
import time
from types import FrameType

import uvicorn

from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, PreflightError
from ray_jobs.serving.app import create_app
from ray_jobs.serving.service import Service

_BACKLOG = 2048  # connections that wait to be accepted
_KEEP_ALIVE_S = 65  # longer than the load balancers' 60, which would else meet a closed connection


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 stands for any that is free.

    Raises:
        PreflightError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY, without which an answer may wait 40 ms, only where TCP is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PreflightError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; set --host or --port"
        ) from None
    return listener


def run(service: Service, listener: socket.socket, *, drain_s: float, timeout_s: float) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code.

    Args:
        drain_s: after SIGTERM, for those who ask /ping to notice.
        timeout_s: then, for the requests that are still being answered.

    Raises:
        JobFailed: the model is refused.
    """
    config = uvicorn.Config(
        create_app(service),
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(timeout_s) + 1,
    )
    server = _Server(config, service, drain_s)
    server.run(sockets=[listener])
    if service.loading.done() and not service.loading.cancelled():
        service.loading.result()
    return EXIT_INTERRUPTED if server.was_interrupted else EXIT_OK


class _Server(uvicorn.Server):
    """Ends by itself when the model is refused, and after SIGTERM only when it has drained."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float):
        super().__init__(config)
        self.was_interrupted = False
        self._service, self._drain_s = service, drain_s
        self._end = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._service.state != "draining":
            self._service.drain()
            self._end = time.monotonic() + self._drain_s
            return
        self.was_interrupted |= sig == signal.SIGINT
        self.force_exit = self.should_exit  # the second time, without waiting for anybody
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        loading = self._service.loading
        is_refused = loading.done() and loading.exception() is not None
        return is_refused or time.monotonic() >= self._end or await super().on_tick(counter)
