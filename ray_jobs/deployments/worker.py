"""Worker: a server process, `python -m ray_jobs.serve`, that answers the public only once it is
told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ray_jobs.deployments.documents import Wanted, WantedVariant
from ray_jobs.deployments.endpoint import invoke, is_ready
from ray_jobs.deployments.process import LogPart, Process
from ray_jobs.errors import JobFailed, PreflightError, RetryableError
from ray_jobs.serving.example import Example
from ray_jobs.serving.handover import ACCEPTS, LEFT, send_listener
from ray_jobs.targets.base import last_error

LOG, MODELS = "worker.log", "models"
_BACKLOG = 2048  # connections that wait to be accepted, as when a worker is started again
_NOTICE_S = 45.0  # from SIGTERM, in which it drains and answers its last requests
_ANSWER_S = 30.0
_MAX_MISSED = 3  # pings in a row


class Worker:
    """A server of some variants. It listens at a port of its own, and ends when this process does.

    Args:
        folder: of the deployment; the bundles are in `models` there, named by their digests.
    """

    def __init__(self, folder: Path, wanted: Wanted, variants: Sequence[WantedVariant]):
        self._log = LogPart.of(folder / LOG)
        self._kill_at = float("inf")
        self._ping_interval_s, self._next_ping = wanted.ping_interval_s, 0.0
        self._num_missed = 0
        self._told = b""
        self._control, inherited = socket.socketpair()
        self._control.setblocking(False)
        private = socket.create_server(("127.0.0.1", 0))
        self.port: int = private.getsockname()[1]
        fds = (private.fileno(), inherited.fileno())
        with private, inherited, self._log.path.open("ab") as log:
            try:
                self._child = subprocess.Popen(
                    _command(folder, wanted, variants, *fds),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=fds,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
            except OSError as error:  # no memory, too many processes
                raise JobFailed(f"no server can be started: {error.strerror}") from None
        self.process = Process.of(self._child.pid)

    def has_ended(self) -> bool:
        if time.monotonic() > self._kill_at:
            self._child.kill()
        return self._child.poll() is not None

    def is_ready(self) -> bool:
        """Whether it has loaded its model.

        Raises:
            JobFailed: it has ended; says why.
        """
        if self.has_ended():
            raise JobFailed(self.why_ended())
        return is_ready(self.port)

    def hangs(self) -> bool:
        """Whether it lives, and has not answered /ping several times in a row. Asks it when the
        next time has come."""
        if time.monotonic() >= self._next_ping:
            self._num_missed = 0 if is_ready(self.port) else self._num_missed + 1
            self._next_ping = time.monotonic() + self._ping_interval_s
        return self._num_missed >= _MAX_MISSED

    def why_ended(self) -> str:
        """What its log says, or how it ended."""
        code = self._child.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return last_error(self._log.read()) or f"the server {how}; {self._log.path} may say why"

    def check(self, example: Example) -> None:
        """Ask for the recorded answer.

        Raises:
            JobFailed: it gives another, or none.
        """
        try:
            answer = invoke(
                "127.0.0.1", self.port, example.body, example.media_type, timeout_s=_ANSWER_S
            )
        except RetryableError as error:
            raise JobFailed(f"it does not answer its own example: {error}") from None
        fault = example.fault(answer)
        if fault is not None:
            raise JobFailed(f"it does not answer its own example as recorded: {fault}")

    def hand_over(self, listener: socket.socket) -> None:
        """Have it accept connections to a listener that others may share."""
        send_listener(self._control, listener)

    def has_taken_over(self) -> bool:
        """Whether it accepts them.

        Raises:
            JobFailed: it has ended.
        """
        if self.has_ended():
            raise JobFailed(self.why_ended())
        return ACCEPTS in self._listen()

    def has_left(self) -> bool:
        """Whether, after `drain`, it accepts none any more."""
        return self.has_ended() or LEFT in self._listen()

    def _listen(self) -> bytes:
        """All that it has told."""
        with suppress(BlockingIOError, ConnectionResetError):  # nothing new
            self._told += self._control.recv(16)
        return self._told

    def drain(self) -> None:
        """Ask it to accept no more, to answer what it has, and to end; in the end it is killed."""
        self._kill_at = min(self._kill_at, time.monotonic() + _NOTICE_S)
        if not self.has_ended():
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        self._control.close()

    def close(self) -> None:
        """After it has ended."""
        self._control.close()


def listen(host: str, port: int) -> socket.socket:
    """The public listener; port 0 stands for any that is free.

    Raises:
        PreflightError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise PreflightError(
            f"cannot listen on {host}:{port}: {cause}; set deployment.local.host or "
            "deployment.local.port"
        ) from None


def _command(
    folder: Path,
    wanted: Wanted,
    variants: Sequence[WantedVariant],
    fd: int,
    control_fd: int,
) -> list[str]:
    champion, *challengers = variants
    models = folder / MODELS
    command = [
        sys.executable, "-m", "ray_jobs.serve", "--fd", str(fd), "--control-fd", str(control_fd),
        "--model", str(models / champion.digest), "--digest", champion.digest,
        "--name", wanted.model, "--version", champion.version,
    ]  # fmt: skip
    for challenger in challengers:
        command += [
            "--challenger", str(models / challenger.digest),
            "--challenger-version", challenger.version,
            "--challenger-digest", challenger.digest,
            "--mode", "shadow" if challenger.is_shadow else "split",
            "--weight", str(challenger.weight),
        ]  # fmt: skip
    if wanted.record_share > 0 and tuple(variants) == wanted.variants:
        command += [
            "--record", wanted.record_uri, "--record-name", folder.name,
            "--record-share", str(wanted.record_share),
            "--record-max-mb", str(wanted.record_max_mb),
        ]  # fmt: skip
    return command
