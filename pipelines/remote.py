"""`emberline run --target …`: a run submitted to its target and followed to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipelines.place import take_over
from pipelines.training import Outcome, command_of
from ray_jobs.checks import in_gib
from ray_jobs.errors import EmberlineError, JobFailed, RetryableError, Stopped
from ray_jobs.run import Run
from ray_jobs.sections import JobSpec
from ray_jobs.targets import connect
from ray_jobs.targets.base import Handle, JobState, Target, patiently, wait

if TYPE_CHECKING:
    from rich.console import Console

NUM_LOG_LINES = 10  # of a job that failed


@dataclass(frozen=True)
class Submission:
    """A run that goes on by itself."""

    handle: Handle
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        handle = self.handle
        fields = {"run_id": handle.run_id, "workload": handle.workload, "storage": handle.storage}
        return json.dumps({**fields, "target": handle.target, "name": handle.name}, indent=2)

    def print(self, console: Console) -> None:
        console.print(f"run {self.handle.run_id} is submitted to {where(self.handle)}")
        for line in how_to_go_on(self.handle):
            console.print(line, soft_wrap=True)


def start(
    spec: JobSpec, run_id: str | None, *, detach: bool = False, stop_on_interrupt: bool = False
) -> Outcome | Submission:
    """Submit a run, or attach to it if it has been submitted, and follow it to its end.

    Args:
        detach: return once it is submitted.
        stop_on_interrupt: an interrupt stops the run; else it goes on.

    Raises:
        EmberlineError: as the target's checks say, or as the run ended.
        KeyboardInterrupt: after saying what becomes of the run.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    target = connect(spec.target, spec)
    done = _finished(spec, run_id)
    if done is not None:
        console.print(f"run {done.run.run_id} is done; this is its result")
        return done
    with console.status(f"checking {spec.target}"):
        target.check(spec, seconds=_estimate(spec)).raise_failed()
    run = Run.create(spec, run_id)
    take_over(run)
    handle, is_submitted = target.handle(run), False
    try:
        with console.status(f"submitting to {spec.target}") as shown:
            target.on_upload = lambda done, total: shown.update(
                f"uploading to {spec.target}: {in_gib(done)} of {in_gib(total)}"
            )
            target.submit(run)
        is_submitted = True
        if detach:
            return Submission(handle)
        if not console.is_terminal:
            console.print(f"run {run.run_id} in {run.storage.display(run.folder)}")
            console.print(f"submitted to {where(handle)}", soft_wrap=True)
        state = _follow(target, run, handle, console)
    except KeyboardInterrupt:
        _leave(target, handle, console, stop=stop_on_interrupt, is_submitted=is_submitted)
        raise
    return _end(target, run, handle, state, console)


def error_of(state: JobState) -> EmberlineError:
    """A run's end as the error that says so."""
    reason = state.reason or f"the run ended as {state.status}"
    if state.status == "STOPPED":
        return Stopped(reason)
    if state.may_be_retried:
        return RetryableError(reason)
    error = JobFailed(reason)
    code = state.details.get("exit_code", "")
    if code in ("2", "3"):  # the job's own verdict on its description or its data
        error.exit_code = int(code)
    return error


def where(handle: Handle) -> str:
    """`ray, as fire-first`."""
    return f"{handle.target}, as {handle.name}"


def how_to_go_on(handle: Handle) -> list[str]:
    """The commands that look at a run, or end it."""
    run = f"{handle.run_id} --storage {handle.storage}"
    return [
        f"look     emberline status {run}",
        f"follow   emberline logs {run} -f",
        f"stop     emberline stop {run}",
    ]


def _finished(spec: JobSpec, run_id: str | None) -> Outcome | None:
    """The outcome of a run that has ended well: its target need not be asked."""
    if run_id is None:
        return None
    from ray_jobs.run import SPEC
    from ray_jobs.storage import Storage

    if not Storage(spec.storage).exists(f"{spec.workload}/{run_id}/{SPEC}"):
        return None
    run = Run.create(spec, run_id)  # says so if it is of another job description
    try:
        result = run.read_result()
    except ValueError:  # its target says what it makes of it
        return None
    return Outcome(run, result) if result is not None and result.status == "SUCCEEDED" else None


def _estimate(spec: JobSpec) -> float | None:
    """What the run may take, where a budget needs it."""
    if spec.target != "sagemaker" or spec.sagemaker.max_cost_usd is None:
        return None
    from tempfile import TemporaryDirectory

    from pipelines import plan
    from pipelines.target_plan import seconds_of
    from ray_jobs.storage import Storage

    with TemporaryDirectory(prefix="emberline-plan-") as folder:
        return seconds_of(plan.make(spec, Storage(folder)))


def _follow(target: Target, run: Run, handle: Handle, console: Console) -> JobState:
    from pipelines.displays import display

    with display(run, console) as progress:

        def on_poll(state: JobState | None) -> None:
            if state is None:
                progress.waits(f"{handle.target} does not answer")
            elif state.status == "PENDING":
                progress.waits(f"{handle.target}: {(state.secondary or 'pending').lower()}")
            progress.poll()

        return wait(
            target,
            handle,
            interval_s=target.poll_interval_s,
            max_attempts=target.max_attempts,
            on_poll=on_poll,
        )


def _leave(
    target: Target, handle: Handle, console: Console, *, stop: bool, is_submitted: bool
) -> None:
    """Say what becomes of a run whose user leaves."""
    if stop:
        console.print(f"interrupted: stopping the run on {where(handle)}")
        target.stop(handle)
        console.print("stopped: nothing of it is left running. Go on with --resume")
        return
    goes_on = "goes on" if is_submitted else "may have been submitted, and then goes on"
    console.print(f"interrupted: the run {goes_on} at {where(handle)}")
    for line in how_to_go_on(handle):
        console.print(line, soft_wrap=True)
    console.print(
        f"attach   emberline {command_of(handle.open().spec)} {handle.workload} --resume "
        f"--run-id {handle.run_id} --storage {handle.storage}",
        soft_wrap=True,
    )


def _end(target: Target, run: Run, handle: Handle, state: JobState, console: Console) -> Outcome:
    if state.status == "SUCCEEDED":
        return Outcome(run, patiently(lambda: target.result(handle)), state.details)
    if state.status == "FAILED":
        for line in last_lines(target, handle):
            console.print(f"| {line}", style="dim", markup=False, soft_wrap=True)
    raise error_of(state)


def last_lines(target: Target, handle: Handle) -> list[str]:
    """The end of a job's log; nothing if it cannot be had."""
    from collections import deque

    try:
        return list(deque(target.logs(handle), NUM_LOG_LINES))
    except EmberlineError:
        return []
