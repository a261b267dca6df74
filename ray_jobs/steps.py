"""The fits of a pipeline's steps: in the step's own process, on a Ray cluster, or in a RayJob, as
`kubeflow.train_on` says.

What a step starts elsewhere belongs to its pod: SIGTERM and SIGINT stop it before the step ends,
and the reaper stops what a killed step leaves. A step that is tried again attaches to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel

from ray_jobs import logs
from ray_jobs import part as parts_here
from ray_jobs.errors import EmberlineError, JobFailed, RetryableError, Stopped
from ray_jobs.owners import this_pod, this_step
from ray_jobs.parts import SWEEP, TRAIN, PartOutcome, member_part, read_outcome
from ray_jobs.result import MemberResult
from ray_jobs.run import Run
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.targets.base import Handle, JobState, Target, patiently, wait

_LOOK_S = 0.2  # between two looks for a signal
_CHECKPOINT_S = 15  # of the 30 s that Kubernetes gives a pod; the rest is for the RayJob's end
_LAST_LINES_S = 10.0  # for what a job that has ended wrote last
_NUM_TRIES = 5  # to stop a job whose service does not answer
T = TypeVar("T", bound=BaseModel)


def train(run: Run) -> MemberResult:
    """Train the run's network; see `ray_jobs.fit.fit`."""
    return _carry_out(run, TRAIN, MemberResult)


def sweep(run: Run) -> SweepResult:
    """Carry out the run's sweep; see `ray_jobs.sweep.sweep`."""
    return _carry_out(run, SWEEP, SweepResult)


def train_member(run: Run, name: str) -> MemberResult:
    """Fit one member of the run's ensemble; see `ray_jobs.members.train_members`."""
    return _carry_out(run, member_part(name), MemberResult)


def _carry_out(run: Run, part: str, kind: type[T]) -> T:
    """Have a part carried out where the run says.

    Raises:
        EmberlineError: as it failed there.
        SystemExit: 130 or 143, after a signal and once it is stopped.
    """
    place = _place(run, part)
    if place is None:
        if this_step() is not None:
            run.clear_stop()  # what ended an earlier attempt of this step
        result = parts_here.work(run, part)
        assert isinstance(result, kind), part
        return result
    outcome = _follow(place, run, part)
    return kind.model_validate(outcome.result)


def _place(run: Run, part: str) -> Target | None:
    """None: this process, and the Ray that RAY_ADDRESS names, if it does: so the local runner's
    steps share one."""
    if run.spec.kubeflow.train_on == "step" or os.environ.get("RAY_ADDRESS"):
        return None
    if run.spec.kubeflow.train_on == "ray":
        from ray_jobs.targets.ray import RayTarget

        return RayTarget(run.spec.ray, part, this_pod())
    from ray_jobs.targets.rayjob import RayJobTarget

    settings = run.spec.rayjob
    own = {
        "image": settings.image or run.spec.kubeflow.image,
        "stop_wait_s": min(settings.stop_wait_s, _CHECKPOINT_S),
    }
    return RayJobTarget(settings.model_copy(update=own), part, this_pod())


def _follow(target: Target, run: Run, part: str) -> PartOutcome:
    """Have a job made for the part, or attach to the one there is, and wait for its outcome."""
    with _signals_noted() as asked:
        for _ in range(target.max_attempts):
            handle = patiently(lambda: target.submit(run))
            logs.say(f"{part} of run {run.run_id} is {target.name} job {handle.name}")
            following = _Following(target, handle)
            while not following.has_ended(_LOOK_S):
                if asked.number is not None:
                    _stop(target, handle, asked.number)
            state = following.state()
            if state.status != "FAILED" or not state.may_be_retried:
                break
    return _outcome_of(run, part, state)


def _stop(target: Target, handle: Handle, number: int) -> None:
    """Stop the job, and end this process as the signal would. A second signal changes nothing."""
    name = signal.Signals(number).name
    logs.say(f"{name}: stopping {target.name} job {handle.name}", level="warning")
    try:
        patiently(lambda: target.stop(handle), patience_s=_NUM_TRIES * 2.0)
        logs.say("stopped: nothing of it is left running")
    except EmberlineError as error:
        logs.say(f"not stopped: {error}; the reaper stops it", level="error")
    sys.exit(128 + number)


class _Following:
    """Waits for a job's end in a thread, and prints its log in another: a signal is not kept
    waiting by a service that does not answer."""

    def __init__(self, target: Target, handle: Handle):
        self._target, self._handle = target, handle
        self._end: JobState | None = None
        self._error: EmberlineError | None = None
        self._done = threading.Event()
        self._shown: set[str] = set()  # attempts
        self._printing: threading.Thread | None = None
        threading.Thread(target=self._wait, daemon=True).start()

    def has_ended(self, timeout_s: float) -> bool:
        return self._done.wait(timeout_s)

    def state(self) -> JobState:
        """Its end, once it has ended.

        Raises:
            EmberlineError: the service refused to say, or did not answer for long.
        """
        if self._printing is not None:
            self._printing.join(_LAST_LINES_S)
        if self._error is not None:
            raise self._error
        assert self._end is not None, "it has ended"
        return self._end

    def _wait(self) -> None:
        target = self._target
        try:
            self._end = wait(
                target,
                self._handle,
                interval_s=target.poll_interval_s,
                on_poll=self._look,
            )
        except EmberlineError as error:
            self._error = error
        finally:
            self._done.set()

    def _look(self, state: JobState | None) -> None:
        """Begin to print the log of an attempt that has begun."""
        attempt = None if state is None else state.details.get("attempt")
        if state is None or attempt is None or attempt in self._shown:
            return
        if state.status == "RUNNING" or state.has_ended:
            self._shown.add(attempt)
            print_log = self._print
            self._printing = threading.Thread(target=print_log, daemon=True)
            self._printing.start()

    def _print(self) -> None:
        try:
            for line in self._target.logs(self._handle, follow=True):
                if logs.is_json():
                    logs.say(line, event="log")
                else:
                    print(f"| {line}", flush=True)
        except EmberlineError as error:  # the job itself goes on
            logs.say(f"its log cannot be followed any more: {error}", level="warning")


def _outcome_of(run: Run, part: str, state: JobState) -> PartOutcome:
    """What the job left.

    Raises:
        EmberlineError: it failed or was stopped, with the exit code of its own process.
    """
    if state.status == "SUCCEEDED":
        outcome = patiently(lambda: read_outcome(run, part))
        assert outcome is not None, "it is how the job's end was known"
        return outcome
    reason = state.reason or f"the job ended as {state.status}"
    if state.status == "STOPPED":
        raise Stopped(reason)
    if state.may_be_retried:
        raise RetryableError(reason)
    error = JobFailed(reason)
    stored = _quietly(lambda: read_outcome(run, part))
    if stored is not None and stored.status == "FAILED":
        error.exit_code = stored.exit_code
    elif state.details.get("exit_code") in ("2", "3"):  # before it could leave anything
        error.exit_code = int(state.details["exit_code"])
    raise error


def _quietly(read: Callable[[], PartOutcome | None]) -> PartOutcome | None:
    try:
        return read()
    except (ValueError, EmberlineError):
        return None


class _Asked:
    """The first signal that came."""

    number: int | None = None


@contextmanager
def _signals_noted() -> Iterator[_Asked]:
    """SIGTERM and SIGINT are only noted within: none interrupts a request that makes or stops a
    job."""
    asked = _Asked()

    def note(number: int, frame: object) -> None:
        asked.number = asked.number or number

    if threading.current_thread() is not threading.main_thread():
        yield asked  # of a test; signals come to the main thread
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
