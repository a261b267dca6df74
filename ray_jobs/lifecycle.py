"""The life of a run, whoever carries it out: once, resumable, and always with an end that can be
read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from ray_jobs.errors import EmberlineError, JobFailed, Stopped
from ray_jobs.evaluate import read_evaluation
from ray_jobs.events import read_events
from ray_jobs.members import read_members
from ray_jobs.result import JobResult, Status
from ray_jobs.run import RESULT, Run
from ray_jobs.versions import versions

_POLL_INTERVAL_S = 0.5
_ERROR_LINE = re.compile(r"^\s*([\w.]*(?:Error|Exception|Failed)\b.*)$", re.MULTILINE)
_OWN_ERROR = re.compile(r"^\s*(ray_jobs\.[\w.]+): (.*\S)\s*$", re.MULTILINE)


def carry_out(
    run: Run, work: Callable[[], None], *, wait: Callable[[], None] = lambda: None
) -> JobResult:
    """Do the run's work, unless it is done or another process is at it; return its result.

    A run that succeeded is never trained again. One that failed or was cut off is taken up where
    its files end.

    Args:
        work: does the job; its last step writes a SUCCEEDED result.
        wait: called several times a second while another process does it.

    Raises:
        EmberlineError: the work failed; the result on storage says FAILED with the same reason.
        KeyboardInterrupt: the work was interrupted; the result says STOPPED.
    """
    while True:
        done = run.read_result()
        if done is not None and done.status == "SUCCEEDED":
            return done
        with run.claim() as ours:
            if ours:
                return _first_time(run, work)
        wait()
        time.sleep(_POLL_INTERVAL_S)


def _first_time(run: Run, work: Callable[[], None]) -> JobResult:
    done = run.read_result()  # it may have ended between the look and the claim
    if done is not None:
        if done.status == "SUCCEEDED":
            return done
        run.storage.delete(run.path(RESULT))
    run.clear_stop()
    try:
        work()
    except KeyboardInterrupt:
        _write_unfinished(run, "STOPPED", "interrupted")
        raise
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        _write_unfinished(run, "STOPPED" if isinstance(error, Stopped) else "FAILED", reason)
        raise
    result = run.read_result()
    if result is None:
        reason = "the job ended without a result"
        run.write_result(_unfinished(run, "FAILED", reason))
        raise JobFailed(reason)
    return result


def _write_unfinished(run: Run, status: Status, reason: str) -> None:
    """Leave a result that says how it ended; the error itself is raised by the caller."""
    try:
        run.write_result(_unfinished(run, status, reason))
    except OSError:  # the storage is why it ended: the message on the terminal says so
        return


def _unfinished(run: Run, status: Status, reason: str) -> JobResult:
    """A result with as much as is known."""
    known = read_evaluation(run)
    events = read_events(run.storage, run.folder)
    base = known or JobResult(
        run_id=run.run_id,
        workload=run.spec.workload,
        status=status,
        objective=run.spec.objective,
        seed=run.spec.seed,
        members=read_members(run),
        versions=versions(),
        started_at=events[0]["time"] if events else datetime.now(UTC),
    )
    return base.model_copy(
        update={"status": status, "reason": reason, "ended_at": datetime.now(UTC)}
    )


def failure_of(run: Run, log: str) -> EmberlineError:
    """The error that ended a run whose steps were other processes, from what they left in the
    journal and in their `log`."""
    text = run.storage.read_text(run.path(log))
    own = _own_error(text)
    for event in reversed(read_events(run.storage, run.folder)):
        # The log is of this attempt alone; the journal has all of the words.
        if "failure" in event and (own is None or event["failure"].startswith(str(own))):
            error = JobFailed(event["failure"])
            error.exit_code = event["exit_code"]
            return error
    if own is not None:  # as of a step that could not reach the journal
        return own
    errors = _ERROR_LINE.findall(text)
    first = f": {errors[0]}" if errors else ""  # those after it only pass it on
    return JobFailed(f"the pipeline ended early{first} (see {run.storage.display(run.path(log))})")


def _own_error(log: str) -> EmberlineError | None:
    """The first error of this project's that a traceback in a log ends with."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _kinds(EmberlineError)}
    for name, reason in _OWN_ERROR.findall(log):
        if name in kinds:
            return kinds[name](reason)
    return None


def _kinds(kind: type[EmberlineError]) -> Iterator[type[EmberlineError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)
