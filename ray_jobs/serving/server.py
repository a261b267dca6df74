"""The server of the app: one process, which drains before it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn

from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, PreflightError
from ray_jobs.logs import is_json
from ray_jobs.serving.app import create_app
from ray_jobs.serving.handover import ACCEPTS, LEFT, receive_listener, tell
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


def run(
    service: Service,
    listener: socket.socket,
    *,
    drain_s: float,
    timeout_s: float,
    control: socket.socket | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code.

    Args:
        drain_s: after SIGTERM, for those who ask /ping to notice.
        timeout_s: then, for the requests that are still being answered.
        control: of a process that watches this one (see `ray_jobs.serving.handover`), and may hand
            over a second listener, which others share: after SIGTERM they are left alone with it at
            once. When the other end is closed, this server ends.

    Raises:
        JobFailed: the model is refused.
    """
    config = uvicorn.Config(
        create_app(service),
        lifespan="on",
        log_config=None if is_json() else uvicorn.config.LOGGING_CONFIG,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(timeout_s) + 1,
    )
    server = _Server(config, service, drain_s, control)
    server.run(sockets=[listener])
    if service.loading.done() and not service.loading.cancelled():
        service.loading.result()
    return EXIT_INTERRUPTED if server.was_interrupted else EXIT_OK


class _Server(uvicorn.Server):
    """Ends by itself when the model is refused, and after SIGTERM only when it has drained."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_s: float,
        control: socket.socket | None,
    ):
        super().__init__(config)
        self.was_interrupted = False
        self._service, self._drain_s, self._control = service, drain_s, control
        self._end = float("inf")
        self._shared: socket.socket | None = None  # the listener that came over `control`
        self._has_left = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._control is not None:
            asyncio.get_running_loop().add_reader(self._control, self._on_control)

    def _on_control(self) -> None:
        assert self._control is not None
        loop = asyncio.get_running_loop()
        listener = receive_listener(self._control)
        if listener is None:
            loop.remove_reader(self._control)
            self.should_exit = True
        else:
            self._shared = listener
            self._accepting = loop.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        assert self._control is not None
        loop = asyncio.get_running_loop()
        protocol: Any = self.config.http_protocol_class
        server = await loop.create_server(
            lambda: protocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            ),
            sock=listener,
            backlog=_BACKLOG,
        )
        self.servers.append(server)
        tell(self._control, ACCEPTS)

    def _leave(self) -> None:
        """Have clients go elsewhere: an idle connection that is closed later may cross a request
        (RFC 9112, section 9.5)."""
        self._has_left = True
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [
            *self.server_state.default_headers,
            (b"connection", b"close"),
        ]
        if self._shared is not None:
            asyncio.get_running_loop().remove_reader(self._shared)
            assert self._control is not None, "it came over that"
            tell(self._control, LEFT)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._service.state != "draining":
            self._service.drain()
            self._end = time.monotonic() + self._drain_s
            return
        self.was_interrupted |= sig == signal.SIGINT
        self.force_exit = self.should_exit  # the second time, without waiting for anybody
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.state == "draining" and not self._has_left:
            self._leave()
        loading = self._service.loading
        is_refused = loading.done() and loading.exception() is not None
        return is_refused or time.monotonic() >= self._end or await super().on_tick(counter)
