"""The hosts of one training job as one Ray cluster: the first leads, the others lend processors.

They find one another by a small file in the run's folder, which all of them reach. There the first
host leaves the cluster's token, for as long as hosts are joining, and at last how the job ended:

    hosts/<training job>.json     {"token": ...}, then {}, then {"exit_code": 0}

It writes a token before its Ray listens, and the others read it after they have seen that: what an
attempt before this one left is not taken for this one's.

Settings for hosts that share a machine: EMBERLINE_RAY_PORT, at which the first host listens, and
EMBERLINE_JOIN_TIMEOUT_S, for which the hosts wait for one another.

Source: Ray documentation, "Launching an On-Premise Cluster" and "Token Authentication".
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from pydantic import BaseModel, Field

from ray_jobs import ray_runtime
from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, EmberlineError, RetryableError, Stopped
from ray_jobs.ray_node import RayNode, ray_node
from ray_jobs.run import Run
from ray_jobs.storage import brief_cause

PORT, JOIN_TIMEOUT_S = "EMBERLINE_RAY_PORT", "EMBERLINE_JOIN_TIMEOUT_S"
_DEFAULTS = {PORT: 6379, JOIN_TIMEOUT_S: 900}  # an image is pulled on some hosts before on others
_POLL_INTERVAL_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 300.0  # for the first host's own Ray
_END_NOTICE_S = 15.0  # for the first host to write the end, which it does when its Ray has ended


class _Meeting(BaseModel):
    """What the first host lets the others know."""

    token: str | None = None
    exit_code: int | None = None  # once the job has ended
    reason: str | None = None
    written_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


@contextmanager
def end_is_told(run: Run) -> Iterator[None]:
    """On the first host: let the others know how the job ended, whatever happens in it."""
    try:
        yield
    except BaseException as error:
        _write(run, _Meeting(exit_code=_exit_code(error), reason=_reason(error)), is_last=True)
        raise
    _write(run, _Meeting(exit_code=EXIT_OK), is_last=True)


@contextmanager
def lead(run: Run, hosts: Sequence[str]) -> Iterator[None]:
    """On the first of `hosts`: a Ray cluster of all of them, which RAY_ADDRESS names meanwhile.

    Raises:
        RetryableError: Ray did not start, or a host did not join in time.
        Stopped: the run was asked to stop before all had joined.
    """
    run.clear_stop()  # of an attempt before this one
    token = secrets.token_hex(32)
    _write(run, _Meeting(token=token))
    address = _resolve(hosts[0])
    port = _setting(PORT)
    words = ("--head", f"--port={port}", f"--ray-client-server-port={port + 1}")
    with ExitStack() as stack:
        node = stack.enter_context(
            ray_node(
                hosts[0], address, token, run.spec.resources, *words, "--include-dashboard=false"
            )
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(address, port):
            if time.monotonic() > deadline:
                raise _silent(hosts[0], f"nothing listens at port {port}")
            _wait(node)
        os.environ["RAY_ADDRESS"] = f"{address}:{port}"
        stack.callback(os.environ.pop, "RAY_ADDRESS", None)
        try:
            stack.enter_context(ray_runtime.session(run.spec.resources))
        except (ConnectionError, RuntimeError) as error:
            raise _silent(hosts[0], brief_cause(error)) from error
        deadline = _deadline()
        while missing := _missing(hosts):
            if run.is_stop_requested():
                raise Stopped(f"asked to stop before {_named(missing)} had joined")
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"{_named(missing)} did not join within {_setting(JOIN_TIMEOUT_S)} s; look at "
                    "the log of each, and whether the security groups of sagemaker.vpc let the "
                    "hosts reach one another"
                )
            _wait(node)
        _write(run, _Meeting())  # the token has served
        print(f"[emberline] a Ray cluster of {len(hosts)} hosts", flush=True)
        yield


def join(run: Run, hosts: Sequence[str], host: str) -> None:
    """On another host: lend its processors to the run until the first of `hosts` has ended it.

    Args:
        run: whose folder need not exist yet.

    Raises:
        RetryableError: the first host was not reached in time, or was lost.
        Stopped: the run was stopped, or this host was asked to stop before it had joined.
        EmberlineError: the run failed on the first host; with its exit code.
    """
    asked: list[int] = []
    # Once this host has joined, the first one's checkpoint is what a notice is for.
    previous = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        address = _resolve(host)
        token = _await_token(run, hosts[0], asked)
        there = f"{_resolve(hosts[0])}:{_setting(PORT)}"
        with ray_node(host, address, token, run.spec.resources, f"--address={there}") as node:
            _await_end(run, hosts[0], node)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _await_token(run: Run, first: str, asked: Collection[int]) -> str:
    deadline = _deadline()
    earlier = _read(run)  # as an attempt before this one ended: SageMaker starts all hosts again
    while True:
        is_listening = _answers(first, _setting(PORT))
        meeting = _read(run)
        if meeting is not None and meeting.exit_code is not None and meeting != earlier:
            raise _ended(first, meeting, meeting.exit_code)  # before its Ray had started
        if is_listening and meeting is not None and meeting.token:
            return meeting.token
        if asked:
            raise Stopped(f"asked to stop before host {first!r} was reached")
        if time.monotonic() > deadline:
            raise RetryableError(
                f"host {first!r} was not reached at port {_setting(PORT)} within "
                f"{_setting(JOIN_TIMEOUT_S)} s; look at its log, and whether the security groups "
                "of sagemaker.vpc let the hosts reach one another"
            )
        time.sleep(_POLL_INTERVAL_S)


def _await_end(run: Run, first: str, node: RayNode) -> None:
    deadline = None
    while True:
        if deadline is None and node.has_ended():
            deadline = time.monotonic() + _END_NOTICE_S
        is_over = deadline is not None and time.monotonic() > deadline
        meeting = _read(run)
        if meeting is not None and meeting.exit_code == EXIT_OK:
            return
        if meeting is not None and meeting.exit_code is not None:
            raise _ended(first, meeting, meeting.exit_code)
        if is_over and _answers(first, _setting(PORT)):
            raise node.failure()
        if is_over:
            raise RetryableError(
                f"host {first!r}, which carries the job out, was lost; submit the run again: it "
                "goes on from its last checkpoint"
            )
        time.sleep(_POLL_INTERVAL_S)


def _ended(first: str, meeting: _Meeting, exit_code: int) -> EmberlineError:
    if exit_code == EXIT_INTERRUPTED:
        return Stopped(f"host {first!r} has stopped: {meeting.reason}")
    error = EmberlineError(f"host {first!r} failed: {meeting.reason}")
    error.exit_code = exit_code
    return error


def _silent(host: str, cause: str) -> RetryableError:
    return RetryableError(f"Ray on host {host!r} does not answer ({cause}); submit the run again")


def _missing(hosts: Sequence[str]) -> list[str]:
    import ray

    there = {node["NodeName"] for node in ray.nodes() if node["Alive"]}
    return [host for host in hosts if host not in there]


def _named(hosts: Sequence[str]) -> str:
    return f"host{'s' if len(hosts) > 1 else ''} {', '.join(map(repr, hosts))}"


def _wait(node: RayNode) -> None:
    """Until the next look.

    Raises:
        RetryableError: Ray has ended: there is nothing to wait for.
    """
    time.sleep(_POLL_INTERVAL_S)
    if node.has_ended():
        raise node.failure()


# The network, and the file in the run's folder


def _resolve(host: str) -> str:
    """A host's IPv4 address; its name may become known after the container has started.

    Raises:
        RetryableError: it did not in time.
    """
    deadline = _deadline()
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"the name of host {host!r} is not known ({error.strerror}); submit the run "
                    "again"
                ) from None
        time.sleep(_POLL_INTERVAL_S)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _path(run: Run) -> str:
    # Members of one run may be trained by jobs of their own, side by side.
    return run.path("hosts", f"{os.environ.get('TRAINING_JOB_NAME', 'job')}.json")


def _read(run: Run) -> _Meeting | None:
    """What the first host has written last; None if it has not, or the storage does not answer."""
    try:
        if not run.storage.exists(_path(run)):
            return None
        return _Meeting.model_validate_json(run.storage.read_bytes(_path(run)))
    except OSError as error:
        print(f"[emberline] warning: storage: {brief_cause(error)}", flush=True)
        return None


def _write(run: Run, meeting: _Meeting, *, is_last: bool = False) -> None:
    """Raises RetryableError if the storage fails; the last time that is but a warning, for there
    the job has its own end."""
    try:
        run.storage.write_text(_path(run), meeting.model_dump_json(exclude_none=True))
    except OSError as error:
        message = f"storage {run.storage.uri!r} cannot be written ({brief_cause(error)})"
        if not is_last:
            raise RetryableError(f"{message}; submit the run again") from None
        print(f"[emberline] warning: the other hosts are not told: {message}", flush=True)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, EmberlineError) else EmberlineError.exit_code


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error).strip() or type(error).__name__


def _deadline() -> float:
    return time.monotonic() + _setting(JOIN_TIMEOUT_S)


def _setting(name: str) -> int:
    return int(os.environ.get(name, _DEFAULTS[name]))
