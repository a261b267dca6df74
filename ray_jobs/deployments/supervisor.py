"""Supervisor: `python -m ray_jobs.deployments.supervisor FOLDER` keeps a local deployment as its
`wanted.json` says.

It owns the public listener. A new worker is tried at a port of its own; only when it has answered
its example is it handed the listener, too, and only then is the one before told to drain: there is
a worker that accepts at every moment. A worker that dies or hangs is started again.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs.deployments.documents import Document, Outcome, State, Wanted, WantedVariant
from ray_jobs.deployments.process import Process, holds_within, rotate
from ray_jobs.deployments.worker import LOG as WORKER_LOG
from ray_jobs.deployments.worker import MODELS, Worker, listen
from ray_jobs.errors import EXIT_OK, EmberlineError, JobFailed, PreflightError
from ray_jobs.serving.example import Example, read_example

WANTED, SERVING, STATE = "wanted.json", "serving.json", "state.json"
LOG = "supervisor.log"
_MAX_LOG_BYTES = 10_000_000  # of each; the part before it is kept, too
_HAND_OVER_S, _LEAVE_S = 30.0, 5.0  # each takes an instant where the machine is not too busy
_IDLE_S, _BUSY_S = 1.0, 0.05  # between two looks
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # before a worker that has died is started again
_STABLE_S = 60.0  # after which the next death is the first again

Start = Generator[None, None, Worker]  # one step a look, to a worker that answers the public


class Supervisor:
    """Keeps one deployment.

    Args:
        folder: of the deployment.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._process = Process.of()
        self._serving = Wanted.read(folder / SERVING)  # what a worker is started again with
        self._former = State.read(folder / STATE)  # of a supervisor that has ended
        self._worker: Worker | None = None
        self._leaving: list[Worker] = []
        self._listener: socket.socket | None = None
        self._host = ""  # of the listener, as it was asked for
        self._revision = ""
        self._outcome: Outcome = "pending"
        self._reason: str | None = None
        self._start: Start | None = None
        self._is_change = False  # that start is one; else it brings back what was there
        self._wanted: Wanted | None = None  # of the change
        self._num_restarts, self._pause_s, self._next_start = 0, _FIRST_PAUSE_S, 0.0
        self._worker_since = 0.0
        self._is_asked_to_end = False

    def run(self) -> int:
        """Until SIGTERM, or until there is nothing to keep. Returns the exit code."""
        waker = self._listen_to_signals()
        while not self._is_asked_to_end:
            self._look_at_wanted()
            self._look_at_worker()
            self._advance()
            self._collect()
            self._look_at_logs()
            if self._is_asked_to_end:
                break
            if self._start is None and self._serving is None:
                return JobFailed.exit_code  # the first version was refused
            is_busy = self._start is not None or bool(self._leaving)
            select.select([waker], [], [], _BUSY_S if is_busy else _IDLE_S)
            _empty(waker)
        self._end()
        return EXIT_OK

    # What is wanted

    def _look_at_wanted(self) -> None:
        try:
            wanted = Wanted.read(self._folder / WANTED)
        except PreflightError:  # what is there goes on; whoever looks at it is told
            return
        if wanted is None:  # it was removed, perhaps from another machine
            self._is_asked_to_end = True
            return
        if wanted.revision == self._revision:
            return
        self._abandon()
        self._revision, self._wanted, self._is_change = wanted.revision, wanted, True
        self._start = self._change(wanted)
        self._say(f"version {_named(wanted)} is wanted")
        self._note("pending")

    def _look_at_worker(self) -> None:
        if self._worker is not None:
            if self._worker.has_ended():
                why = self._worker.why_ended()
                self._worker.close()
                self._lose_worker(why)
            elif self._worker.hangs():
                self._worker.kill()
                self._lose_worker("it did not answer /ping any more, and was ended")
        is_due = self._start is None and time.monotonic() >= self._next_start
        if self._worker is None and is_due and self._serving is not None:
            self._num_restarts += 1
            self._is_change = False
            self._start = self._restart(self._serving)

    def _lose_worker(self, why: str) -> None:
        self._worker = None
        if time.monotonic() - self._worker_since > _STABLE_S:
            self._pause_s = _FIRST_PAUSE_S
        self._put_off(why)

    def _put_off(self, why: str) -> None:
        self._say(f"no worker answers: {why}; the next is started in {self._pause_s:g} s")
        self._next_start = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._note()

    def _advance(self) -> None:
        if self._start is None:
            return
        try:
            next(self._start)
        except StopIteration as done:
            self._start = None
            self._succeed(done.value)
        except EmberlineError as error:
            self._start = None
            self._fail(str(error))

    def _succeed(self, worker: Worker) -> None:
        before, self._worker, self._worker_since = self._worker, worker, time.monotonic()
        if before is not None:
            before.drain()
            self._leaving.append(before)
            holds_within(_LEAVE_S, before.has_left)  # so that a new client meets the new version
        if not self._is_change:
            self._say("a worker answers again")
            self._note()
            return
        assert self._wanted is not None
        self._serving = self._wanted
        self._write(self._serving, SERVING)
        self._num_restarts, self._pause_s = 0, _FIRST_PAUSE_S
        self._say(f"version {_named(self._serving)} answers at port {self._port()}")
        self._note("done")

    def _fail(self, why: str) -> None:
        if not self._is_change:
            self._put_off(why)
            return
        stays = "none answers" if self._serving is None else f"{_named(self._serving)} stays"
        self._say(f"version {self._wanted and _named(self._wanted)} is refused: {why}; {stays}")
        self._note("failed", why)

    # Starting a worker, step by step

    def _change(self, wanted: Wanted) -> Start:
        """A worker, once each of its versions has answered its example.

        Raises:
            JobFailed: one did not, or not in time.
            PreflightError: the port cannot be had.
        """
        listener = self._listener_of(wanted)
        is_alone = len(wanted.variants) == 1
        try:
            # Behind one port a version could not be told from the other: each is tried alone.
            for variant in [] if is_alone else self._unproven(wanted):
                trial = yield from self._ready(wanted, (variant,))
                try:
                    trial.check(self._example(variant))
                finally:
                    trial.kill()
            worker = yield from self._ready(wanted, wanted.variants)
            try:
                if is_alone:
                    worker.check(self._example(wanted.variants[0]))
                _hand_over(worker, listener)
            except JobFailed:
                worker.kill()
                raise
        except BaseException:
            if listener is not self._listener:
                listener.close()
            raise
        if self._listener is not None and self._listener is not listener:
            self._listener.close()
        self._listener, self._host = listener, wanted.host
        return worker

    def _restart(self, wanted: Wanted) -> Start:
        """A worker in place of one that has died.

        Raises:
            JobFailed, PreflightError: as `_change`.
        """
        self._listener, self._host = self._listener_of(wanted), wanted.host
        worker = yield from self._ready(wanted, wanted.variants)
        try:
            _hand_over(worker, self._listener)
        except JobFailed:
            worker.kill()
            raise
        return worker

    def _ready(self, wanted: Wanted, variants: Sequence[WantedVariant]) -> Start:
        deadline = time.monotonic() + wanted.start_timeout_s
        worker = Worker(self._folder, wanted, variants)
        try:
            while not worker.is_ready():
                if time.monotonic() > deadline:
                    raise JobFailed(
                        f"it was not ready within {wanted.start_timeout_s:g} s; set "
                        "deployment.local.start_timeout_s"
                    )
                yield
        except BaseException:  # also when the change is abandoned
            worker.kill()
            raise
        return worker

    def _unproven(self, wanted: Wanted) -> list[WantedVariant]:
        """Those that have not answered their examples in this deployment yet."""
        proven = [one.digest for one in self._serving.variants] if self._serving else []
        return [variant for variant in wanted.variants if variant.digest not in proven]

    def _example(self, variant: WantedVariant) -> Example:
        return read_example(self._folder / MODELS / variant.digest)

    def _listener_of(self, wanted: Wanted) -> socket.socket:
        """The one that there is, if it fits."""
        fits = self._host == wanted.host and wanted.port in (0, self._port())
        if self._listener is not None and fits:
            return self._listener
        former = self._former
        if former is not None and former.port and (former.host, 0) == (wanted.host, wanted.port):
            try:  # its clients know that one
                return listen(former.host, former.port)
            except PreflightError as error:
                self._say(f"{error}; another port is chosen")
        return listen(wanted.host, wanted.port)

    # The end

    def _abandon(self) -> None:
        if self._start is not None:
            self._start.close()
            self._start = None

    def _collect(self) -> None:
        for worker in [one for one in self._leaving if one.has_ended()]:
            worker.close()
            self._leaving.remove(worker)

    def _end(self) -> None:
        self._abandon()
        if self._listener is not None:
            self._listener.close()
        if self._worker is not None:
            self._worker.drain()
            self._leaving.append(self._worker)
            self._worker = None
        while self._leaving:
            self._collect()
            time.sleep(_BUSY_S)
        self._say("ended")

    # What others read

    def _port(self) -> int:
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def _note(self, outcome: Outcome | None = None, reason: str | None = None) -> None:
        if outcome is not None:
            self._outcome, self._reason = outcome, reason
        shown = self._serving or self._wanted
        state = State(
            supervisor=self._process,
            revision=self._revision,
            outcome=self._outcome,
            reason=self._reason,
            host=shown.host if shown else "",
            port=self._port(),
            worker=self._worker.process if self._worker else None,
            num_restarts=self._num_restarts,
        )
        self._write(state, STATE)

    def _write(self, document: Document, name: str) -> None:
        try:
            document.write(self._folder / name)
        except OSError as error:  # as of a full disk: that ends no answers
            self._say(f"{name} cannot be written: {error}")

    def _look_at_logs(self) -> None:
        for name in (LOG, WORKER_LOG):
            try:
                rotate(self._folder / name, _MAX_LOG_BYTES)
            except OSError as error:
                self._say(f"what {name} held is not kept: {error.strerror}")

    def _say(self, line: str) -> None:
        with suppress(OSError):  # of a full disk: its own log is no reason to end
            print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}", file=sys.stderr)

    def _listen_to_signals(self) -> int:
        """A descriptor that can be read when a signal has come."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_end)
        return reader

    def _ask_to_end(self, *_: object) -> None:
        self._is_asked_to_end = True


def _hand_over(worker: Worker, listener: socket.socket) -> None:
    worker.hand_over(listener)
    if not holds_within(_HAND_OVER_S, worker.has_taken_over):
        raise JobFailed(f"it did not take over the port within {_HAND_OVER_S:g} s")


def _named(wanted: Wanted) -> str:
    return " and ".join(variant.version for variant in wanted.variants)


def _empty(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.deployments.supervisor FOLDER`; 4 if its first version was refused."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    return Supervisor(Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
