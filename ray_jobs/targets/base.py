"""What a target is: a place where a run can be carried out, and how to follow it there.

A target knows nothing of what it runs: the run's folder holds the job description, and
`result.json` there is what came out, wherever the job ran.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from ray_jobs.checks import Checklist
from ray_jobs.errors import EmberlineError, RetryableError
from ray_jobs.events import read_events
from ray_jobs.parts import PartOutcome, read_outcome
from ray_jobs.result import JobResult, Status
from ray_jobs.run import Run
from ray_jobs.storage import brief_cause

_ERROR_LINE = re.compile(r"^(?:error: |[\w.]+(?:Error|Exception): )(.*)$", re.MULTILINE)
T = TypeVar("T")
OnUpload = Callable[[int, int], None]
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class Handle:
    """A run at a target."""

    target: str
    workload: str
    run_id: str
    storage: str  # root URI of its folder
    name: str  # what the target's service calls it

    def open(self) -> Run[Any]:
        """The run.

        Raises:
            SpecError: its folder is gone.
            RetryableError: the storage does not answer.
        """
        with _answering(self.storage):
            return Run.open(self.storage, self.workload, self.run_id)


@dataclass(frozen=True)
class JobState:
    """How far a run is, as its target sees it."""

    status: Status
    reason: str | None = None  # why it FAILED or was STOPPED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    secondary: str | None = None  # the service's own word for it
    may_be_retried: bool = False  # it FAILED for a reason that may pass: submit it again
    is_submitted: bool = True
    is_due: bool = False  # it goes on with another submission, such as its next member's
    details: dict[str, str] = field(default_factory=dict)  # what else the service says of it

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


class Target(ABC):
    """A place where runs are carried out."""

    name: ClassVar[str]
    poll_interval_s: float = 1.0  # between two looks, where the user does not say
    max_attempts: int = 1  # of a run that fails for a reason that may pass
    on_upload: OnUpload = staticmethod(lambda done, total: None)  # bytes that are sent, and in all

    def storage(self, spec: Any) -> str:
        """The root URI under which a run of this description is kept.

        Raises:
            SpecError: the target cannot use the one that is named.
        """
        return spec.storage

    @abstractmethod
    def check(self, spec: Any, *, seconds: float | None = None) -> Checklist:
        """Everything that can be known before a job of this description is submitted. What is wrong
        is a failed check with its fix.

        Args:
            seconds: what the run is estimated to take, if that is known.
        """

    @abstractmethod
    def handle(self, run: Run) -> Handle:
        """The handle of a run, submitted or not: what finds it from another process."""

    @abstractmethod
    def submit(self, run: Run) -> Handle:
        """Have the run carried out. One that is at it, or done, is attached to and not trained
        again; one that failed or was stopped is taken up where its files end.

        Raises:
            PreflightError: the target cannot carry it out as things are.
            RetryableError: the target does not answer.
        """

    @abstractmethod
    def status(self, handle: Handle) -> JobState:
        """How far the run is.

        Raises:
            SpecError: the run's folder is gone.
            PreflightError: the target refuses this user.
            RetryableError: the target does not answer.
        """

    @abstractmethod
    def logs(self, handle: Handle, *, follow: bool = False) -> Iterator[str]:
        """The job's log so far, line by line; with `follow`, until the job has ended.

        Raises:
            As `status`.
        """

    @abstractmethod
    def stop(self, handle: Handle) -> None:
        """Have the job write a checkpoint, if it can, and end; returns when it has ended. Nothing
        happens to a run that has ended.

        Raises:
            As `status`; RetryableError, too, if it has not ended in time.
        """

    @abstractmethod
    def list(self) -> list[Handle]:
        """The runs that this project has submitted here, the newest last.

        Raises:
            PreflightError, RetryableError: as `status`.
        """

    def result(self, handle: Handle) -> JobResult:
        """What came out. A run without a readable result has one that gives its status and the
        reason, and no metrics.

        Raises:
            As `status`.
        """
        run = handle.open()
        state = self.status(handle)
        if state.has_ended:
            try:
                with _answering(run.storage.uri):
                    stored = run.read_result()
            except ValueError:  # the state's reason says it
                stored = None
            if stored is not None and _tells_of(stored, state):
                return stored
        return JobResult(
            run_id=run.run_id,
            workload=run.spec.workload,
            status=state.status,
            reason=state.reason,
            objective=run.spec.objective,
            seed=run.spec.seed,
            started_at=state.started_at or datetime.now(UTC),
            ended_at=state.ended_at,
        )


def _tells_of(result: JobResult, state: JobState) -> bool:
    """Whether a result is of this end; a failure in other words is that of an earlier attempt."""
    if result.status != state.status:
        return False
    return state.status != "FAILED" or result.reason == state.reason


@contextmanager
def _answering(storage: str) -> Iterator[None]:
    try:
        yield
    except EmberlineError:  # a remote storage says it itself
        raise
    except OSError as error:
        raise RetryableError(
            f"storage {storage!r} does not answer ({brief_cause(error)}); try again"
        ) from None


def stored_state(run: Run, part: str | None = None) -> JobState | None:
    """The end that the run's `result.json` tells of, or None while there is none.

    Args:
        part: of the run; its own file tells of its end.

    Raises:
        RetryableError: the storage does not answer.
    """
    result: JobResult | PartOutcome | None
    try:
        with _answering(run.storage.uri):
            result = run.read_result() if part is None else read_outcome(run, part)
    except ValueError as error:
        return JobState("FAILED", str(error))
    if result is None:
        return None
    return JobState(result.status, result.reason, result.started_at, result.ended_at)


def stored_events(run: Run) -> list[dict[str, Any]]:
    """The run's journal so far.

    Raises:
        RetryableError: the storage does not answer.
    """
    with _answering(run.storage.uri):
        return read_events(run.storage, run.folder)


def last_error(log: str) -> str | None:
    """What the last error in a job's log says."""
    errors = _ERROR_LINE.findall(log)
    return errors[-1] if errors else None


def patiently(ask: Callable[[], T], *, patience_s: float = 120.0, interval_s: float = 2.0) -> T:
    """An answer, asked for until it is given or the patience is over.

    Raises:
        RetryableError: the last one.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except RetryableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(interval_s)


class Watch:
    """Follows one run, look by look."""

    def __init__(
        self, target: Target, handle: Handle, *, max_attempts: int = 1, patience_s: float = 120.0
    ):
        """As `wait`."""
        self.handle = handle
        self._target = target
        self._attempts_left = max_attempts - 1
        self._patience_s = patience_s
        self._answered_at = time.monotonic()

    def look(self) -> JobState | None:
        """How far the run is, once what is due has been submitted; None if the target does not
        answer just now.

        Raises:
            As `Target.status` and `Target.submit`; RetryableError once the patience is over.
        """
        try:
            state = self._target.status(self.handle)
            if state.is_due:
                self._target.submit(self.handle.open())
            elif state.status == "FAILED" and state.may_be_retried and self._attempts_left:
                self._target.submit(self.handle.open())
                self._attempts_left -= 1
                state = JobState("PENDING", secondary="submitted again")
        except RetryableError:
            if time.monotonic() - self._answered_at > self._patience_s:
                raise
            return None
        self._answered_at = time.monotonic()
        return state


def wait(
    target: Target,
    handle: Handle,
    *,
    interval_s: float = 1.0,
    max_attempts: int = 1,
    patience_s: float = 120.0,
    on_poll: Callable[[JobState | None], None] = lambda state: None,
) -> JobState:
    """Follow a run to its end.

    Args:
        interval_s: between two looks.
        max_attempts: how often the run may be carried out in all, if it fails for a reason that
            may pass, such as a lost node.
        patience_s: how long the target may leave unanswered.
        on_poll: told every state seen; None if the target did not answer.

    Raises:
        As `Target.status` and, for another attempt, `Target.submit`.
    """
    watch = Watch(target, handle, max_attempts=max_attempts, patience_s=patience_s)
    while True:
        state = watch.look()
        on_poll(state)
        if state is not None and state.has_ended:
            return state
        time.sleep(interval_s)
