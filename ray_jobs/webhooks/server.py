"""The receiver's server: one process, which ends a deployment that is under way before it ends."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK
from ray_jobs.logs import is_json

_NUM_CONNECTIONS = 64  # at once; MLflow has ten


def run(app: Starlette, listener: socket.socket) -> int:
    """Serve the app of `create_app` until SIGTERM or SIGINT. Returns the exit code. Raises what has
    ended its rollouts, if that is what it was."""
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None if is_json() else uvicorn.config.LOGGING_CONFIG,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_NUM_CONNECTIONS,
    )
    server = _Server(config, app)
    server.run(sockets=[listener])
    rollouts = app.state.rollouts
    if rollouts.done() and not rollouts.cancelled():
        rollouts.result()
    return EXIT_INTERRUPTED if server.was_interrupted else EXIT_OK


class _Server(uvicorn.Server):
    """Ends by itself when nothing is deployed any more."""

    def __init__(self, config: uvicorn.Config, app: Starlette):
        super().__init__(config)
        self.was_interrupted = False
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.was_interrupted |= sig == signal.SIGINT
        self.force_exit = self.should_exit  # the second time, without waiting for anybody
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return self._app.state.rollouts.done() or await super().on_tick(counter)
