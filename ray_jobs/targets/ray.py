"""A Ray cluster as a target: the job is submitted to its dashboard and runs on its nodes.

Ray ties a job to its cluster and a driver to its node. A job that loses either is submitted again
under the next attempt number, and goes on from the run's folder; so the storage must be one that
every node and this machine reach.

Source: Ray's documentation, Ray Jobs API (`ray.job_submission.JobSubmissionClient`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.checks import Checklist, check_storage
from ray_jobs.errors import EXIT_INTERRUPTED, PreflightError, RetryableError, SpecError
from ray_jobs.owners import Owner, this_step
from ray_jobs.parts import job_words
from ray_jobs.run import Run
from ray_jobs.storage import Storage, brief_cause
from ray_jobs.targets.base import Handle, JobState, Target, last_error, stored_events, stored_state
from ray_jobs.targets.names import attempt_name, ray_submission_id
from ray_jobs.targets.ray_spec import RaySpec

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PREFIX = "emberline."  # of a job's metadata
_WORKLOAD, _RUN_ID, _STORAGE, _ATTEMPT, _PART = (
    f"{PREFIX}{key}" for key in ("workload", "run_id", "storage", "attempt", "part")
)
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray takes these before any argument
_PASSED_ON = ("MLFLOW_TRACKING_URI", "EMBERLINE_LOG_FORMAT")
_POLL_INTERVAL_S = 0.5
_AFTER_KILL_S = 30.0
_GIB = 2**30


def connect(spec: Any) -> RayTarget:
    """Raises SpecError: `ray.address` is missing."""
    return RayTarget(spec.ray)


class RayTarget(Target):
    """Jobs of one Ray cluster. Nothing is asked of it before the first method is called."""

    name = "ray"

    def __init__(self, settings: RaySpec, part: str | None = None, owner: Owner | None = None):
        """Args:
            part: of the runs, that the jobs carry out; None: all of it.
            owner: the pod of the step that submits; None: this one's, if it is one.

        Raises:
            SpecError: `ray.address` is missing.
        """
        if settings.address is None:
            raise SpecError(
                "target=ray: ray.address is required: --set ray.address=http://HOST:8265, the "
                "address of the cluster's dashboard"
            )
        self.max_attempts = settings.max_attempts
        self._settings, self._part = settings, part
        self._owner = owner or this_step()
        self._address = settings.address
        self._connected: JobSubmissionClient | None = None
        self._attempts: dict[str, int] = {}  # the newest that is known, of each run seen

    def check(self, spec: Any, *, seconds: float | None = None) -> Checklist:
        checklist = Checklist()
        checklist.make("Ray cluster", self._look_at_cluster)
        checklist.make("working tree", self._look_at_tree)
        checklist.make("variables", lambda: ", ".join(sorted(self._variables())))
        checklist.add(check_storage(spec.storage))
        checklist.make("shared storage", lambda: _look_at_storage(spec.storage))
        return checklist

    def handle(self, run: Run) -> Handle:
        workload = run.spec.workload
        name = ray_submission_id(workload, run.run_id, part=self._part)
        return Handle(self.name, workload, run.run_id, run.storage.uri, name)

    def submit(self, run: Run) -> Handle:
        handle = self.handle(run)
        stored = stored_state(run, self._part)
        if stored is not None and stored.status == "SUCCEEDED":
            return handle
        attempt, job = self._newest(handle)
        if job is None or job.status.is_terminal():
            self._submit(run, handle, attempt + 1)
        return handle

    def status(self, handle: Handle) -> JobState:
        run = handle.open()
        try:
            attempt, job = self._newest(handle)
        except (PreflightError, RetryableError):
            stored = stored_state(run, self._part)
            if stored is None or stored.status != "SUCCEEDED":
                raise
            return stored  # it outlives its cluster
        if job is not None:
            return _state(run, self._part, job, attempt)
        stored = stored_state(run, self._part)
        if stored is not None:
            return stored
        is_known = handle.name in self._attempts
        if not is_known and (self._part or not stored_events(run)):
            return JobState("PENDING", "it has not been submitted", is_submitted=False)
        return JobState(
            "FAILED",
            f"the Ray cluster at {self._address} does not know the run: its head was started anew; "
            "submit it again to go on where it ended",
            may_be_retried=True,
        )

    def logs(self, handle: Handle, *, follow: bool = False) -> Iterator[str]:
        handle.open()
        attempt, job = self._newest(handle)
        if job is None:
            return
        name = attempt_name(handle.name, attempt)
        with self._answers() as client:
            if not follow:
                yield from client.get_job_logs(name).splitlines()
                return
            rest = ""
            for chunk in _in_turn(client.tail_job_logs(name)):
                *lines, rest = (rest + chunk).split("\n")
                yield from lines
            if rest:
                yield rest

    def stop(self, handle: Handle) -> None:
        attempt, job = self._newest(handle)
        if job is not None and not job.status.is_terminal():
            self.stop_job(attempt_name(handle.name, attempt), f"run {handle.run_id!r}")

    def stop_job(self, submission_id: str, of: str) -> None:
        """Have one job end; returns when it has.

        Args:
            of: whose it is, for a message.

        Raises:
            As `stop`.
        """
        with self._answers() as client:
            client.stop_job(submission_id)
        deadline = time.monotonic() + self._settings.stop_wait_s + _AFTER_KILL_S
        while time.monotonic() < deadline:
            job = self._job(submission_id)
            if job is None or job.status.is_terminal():
                return
            time.sleep(_POLL_INTERVAL_S)
        raise RetryableError(
            f"{of}: the Ray cluster at {self._address} has not ended the job {submission_id}; look "
            "at its dashboard, and stop the run again"
        )

    def unfinished_jobs(self) -> list[JobDetails]:
        """Those of the cluster that have not ended, whosever they are.

        Raises:
            PreflightError, RetryableError: as `status`.
        """
        with self._answers() as client:
            return [job for job in client.list_jobs() if not job.status.is_terminal()]

    def list(self) -> list[Handle]:
        with self._answers() as client:
            jobs = client.list_jobs()
        handles = {}
        for job in sorted(jobs, key=lambda job: job.start_time or 0):
            tags = job.metadata or {}
            if {_WORKLOAD, _RUN_ID, _STORAGE} <= tags.keys() and _PART not in tags:
                workload, run_id = tags[_WORKLOAD], tags[_RUN_ID]
                name = ray_submission_id(workload, run_id)
                handles[name] = Handle(self.name, workload, run_id, tags[_STORAGE], name)
        return list(handles.values())

    def _submit(self, run: Run, handle: Handle, attempt: int) -> None:
        settings, name = self._settings, attempt_name(handle.name, attempt)
        command = [settings.python, "-m", *job_words(run, self._part)]
        environment = {**settings.runtime_env, "env_vars": self._variables()}
        if settings.working_dir is not None:
            self._look_at_tree()
            tree = Path(settings.working_dir).expanduser().absolute()
            environment |= {"working_dir": str(tree), "excludes": list(settings.excludes)}
        tags = {_WORKLOAD: handle.workload, _RUN_ID: handle.run_id, _STORAGE: handle.storage}
        if self._part is not None:
            tags[_PART] = self._part
        if self._owner is not None:
            tags |= {f"{PREFIX}{key}": value for key, value in self._owner.fields().items()}
        with self._answers() as client:
            try:
                client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=name,
                    runtime_env=environment,
                    metadata={**tags, _ATTEMPT: str(attempt)},
                    entrypoint_num_cpus=settings.entrypoint_num_cpus or None,
                    entrypoint_num_gpus=settings.entrypoint_num_gpus or None,
                    entrypoint_memory=int(settings.entrypoint_memory_gb * _GIB) or None,
                    entrypoint_resources=dict(settings.entrypoint_resources) or None,
                )
            except RuntimeError:
                if self._job(name) is None:  # else another process was quicker: attach
                    raise
            except ValueError as error:
                raise SpecError(
                    f"ray.runtime_env and ray.working_dir: Ray takes no such environment: "
                    f"{brief_cause(error)}"
                ) from None
        self._attempts[handle.name] = attempt

    def _newest(self, handle: Handle) -> tuple[int, JobDetails | None]:
        """The run's newest attempt that the cluster knows: its number and its job; 0 and None if it
        knows none."""
        attempt = self._attempts.get(handle.name, 1)
        job = self._job(attempt_name(handle.name, attempt))
        if job is None and attempt > 1:  # the head was started anew, and counts anew
            attempt, job = 1, self._job(handle.name)
        if job is None:
            return 0, None
        while (later := self._job(attempt_name(handle.name, attempt + 1))) is not None:
            attempt, job = attempt + 1, later
        self._attempts[handle.name] = attempt
        return attempt, job

    def _job(self, submission_id: str) -> JobDetails | None:
        with self._answers() as client:
            try:
                return client.get_job_info(submission_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    @contextmanager
    def _answers(self) -> Iterator[JobSubmissionClient]:
        """The cluster's client; what it raises, as errors of this project."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError

        try:
            if self._connected is None:
                self._connected = self._connect()
            yield self._connected
        except AuthenticationError:
            raise PreflightError(
                f"the Ray cluster at {self._address} refuses this user's token, or there is none; "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the "
                "cluster's"
            ) from None
        except (OSError, ClientError) as error:  # those of `requests` are OSErrors
            raise RetryableError(
                f"the Ray cluster at {self._address} does not answer ({type(error).__name__}); "
                "look whether its head is up and ray.address is its dashboard's"
            ) from None
        except RuntimeError as error:
            raise RetryableError(
                f"the Ray cluster at {self._address} cannot do it: {brief_cause(error)}"
            ) from None

    def _connect(self) -> JobSubmissionClient:
        from ray.job_submission import JobSubmissionClient

        for name in _OVERRIDES:
            value = os.environ.get(name)
            if value and value != self._address:
                raise SpecError(
                    f"{name}={value} would take the place of ray.address={self._address}; unset it"
                )
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # they tell of all they send
            logging.getLogger(name).setLevel(logging.ERROR)
        return JobSubmissionClient(self._address)

    def _variables(self) -> dict[str, str]:
        """What the job finds in its environment."""
        settings = self._settings
        missing = [name for name in settings.env if name not in os.environ]
        if missing:
            raise PreflightError(
                f"ray.env names {', '.join(missing)}, which is not set here; set it, or take it "
                "out of ray.env"
            )
        names = [*(name for name in _PASSED_ON if name in os.environ), *settings.env]
        return {
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_wait_s),
            **{name: os.environ[name] for name in names},
            **settings.runtime_env.get("env_vars", {}),
        }

    def _look_at_cluster(self) -> str:
        try:
            with self._answers() as client:
                num_jobs = len(client.list_jobs())
        except RetryableError as error:
            raise PreflightError(str(error)) from None
        return f"{self._address} answers; it knows {num_jobs} jobs"

    def _look_at_tree(self) -> str:
        working_dir = self._settings.working_dir
        if working_dir is None:
            return "none is sent: the cluster's image has the project"
        tree = Path(working_dir).expanduser().absolute()
        if not (tree / "ray_jobs" / "train.py").is_file():
            raise PreflightError(
                f"ray.working_dir: {tree} has no ray_jobs/train.py; set it to the project's "
                "folder, or to null where the cluster's image has the project"
            )
        return f"{tree} is sent"


def _state(run: Run, part: str | None, job: JobDetails, attempt: int) -> JobState:
    """What the cluster says of the job; once it has ended, what the run's result says."""
    code = job.driver_exit_code
    details = {"submission_id": str(job.submission_id), "attempt": str(attempt)}
    if code is not None:
        details["exit_code"] = str(code)
    known: dict[str, Any] = {
        "started_at": _time(job.start_time),
        "ended_at": _time(job.end_time),
        "secondary": str(job.status),
        "details": details,
    }
    if not job.status.is_terminal():
        known["ended_at"] = None
        return JobState("PENDING" if job.status == "PENDING" else "RUNNING", **known)
    stored = stored_state(run, part)
    if stored is not None and stored.status == "SUCCEEDED":
        return JobState("SUCCEEDED", **known)
    if job.status == "STOPPED" or code == EXIT_INTERRUPTED:
        reason = stored.reason if stored is not None and stored.status == "STOPPED" else None
        return JobState("STOPPED", reason or "it was stopped", **known)
    if stored is not None:
        reason = stored.reason
    elif job.status == "SUCCEEDED":
        reason = f"the job ended without a result in {run.storage.display(run.folder)}"
    else:
        reason = last_error(job.message or "") or brief_cause(RuntimeError(job.message or ""))
    # The driver itself says so, or it did not get to say anything: it was killed, or its node lost.
    may_be_retried = job.status == "FAILED" and (
        code == RetryableError.exit_code
        or (code is not None and (code < 0 or code > 128))
        or (code is None and job.error_type != "RUNTIME_ENV_SETUP_FAILURE")
    )
    return JobState("FAILED", reason, may_be_retried=may_be_retried, **known)


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _look_at_storage(uri: str) -> str:
    storage = Storage(uri)
    if storage.is_local:
        return f"{storage.uri} must be the same folder on this machine and on every node"
    return f"every node needs credentials for {storage.uri}"


def _in_turn(chunks: AsyncIterator[str]) -> Iterator[str]:
    """An asynchronous iterator as a plain one."""

    async def next_chunk() -> str | None:
        return await anext(chunks, None)

    with asyncio.Runner() as runner:
        while (chunk := runner.run(next_chunk())) is not None:
            yield chunk
