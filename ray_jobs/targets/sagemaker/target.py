"""SageMaker as a target: a run is a training job, or one for each member and one that combines
them.

The run's folder lies on S3, where SageMaker keeps the job's checkpoints. A training job's name is
never free again, so a run that failed or was stopped goes on as a job of the next attempt, from
what the folder holds. What SageMaker says of a job comes first: a result in the folder may be of
the attempt before.

Source: Amazon SageMaker AI API Reference, "CreateTrainingJob" and "DescribeTrainingJob".
"""

from __future__ import annotations

import getpass
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.checks import Checklist
from ray_jobs.errors import JobFailed, RetryableError, SpecError
from ray_jobs.owners import this_step
from ray_jobs.run import Run
from ray_jobs.targets.base import Handle, JobState, Target
from ray_jobs.targets.names import sagemaker_name
from ray_jobs.targets.sagemaker.archive import unpack
from ray_jobs.targets.sagemaker.aws import Aws, answers
from ray_jobs.targets.sagemaker.costs import costs, max_run_s_of_part, totals
from ray_jobs.targets.sagemaker.data import upload_channels
from ray_jobs.targets.sagemaker.description import TrainingJobState
from ray_jobs.targets.sagemaker.environment import job_environment
from ray_jobs.targets.sagemaker.jobs import adopt, create, describe, find_tagged, stop
from ray_jobs.targets.sagemaker.logs import JobLogs
from ray_jobs.targets.sagemaker.parts import PartJob, Parts, look_at_parts
from ray_jobs.targets.sagemaker.request import storage_root, training_job_request
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.state import state_of_job, state_of_parts
from ray_jobs.targets.sagemaker.submissions import (
    Submission,
    begin_round,
    begin_to_stop,
    is_stopping,
    newest,
    read_channels,
    read_submissions,
    write_submission,
)
from ray_jobs.workloads.base import COMBINE

_LAST_LINES_S = 2.0  # after a job's end, until CloudWatch has what it wrote last


def connect(spec: Any) -> SageMakerTarget:
    return SageMakerTarget(spec.sagemaker)


@dataclass(frozen=True)
class _Look:
    """A run, as its training jobs are now."""

    made: Sequence[Submission]
    states: dict[Submission, TrainingJobState]  # of the newest job of each part, and all before
    parts: Parts | None  # None: one job carries out all of it
    state: JobState

    @property
    def round(self) -> int:
        """The present one; 0 before the first."""
        return max((one.round for one in self.made), default=0)


class SageMakerTarget(Target):
    """Training jobs of one account and region, each made as its own run's description says. Nothing
    is asked of AWS before the first method is called."""

    name = "sagemaker"

    def __init__(self, settings: SageMakerSpec):
        self.aws = Aws(settings)
        self.poll_interval_s = settings.poll_interval_s
        self.max_attempts = settings.max_attempts
        self._ended: dict[str, TrainingJobState] = {}  # jobs of earlier attempts

    def storage(self, spec: Any) -> str:
        return storage_root(spec, spec.sagemaker)

    def check(self, spec: Any, *, seconds: float | None = None) -> Checklist:
        from ray_jobs.targets.sagemaker.checks import examine

        return examine(self.aws, spec, seconds=seconds)

    def handle(self, run: Run) -> Handle:
        workload = run.spec.workload
        name = sagemaker_name(workload, run.run_id)
        return Handle(self.name, workload, run.run_id, run.storage.uri, name)

    def submit(self, run: Run) -> Handle:
        handle = self.handle(run)
        root = self.storage(run.spec)
        if run.storage.uri != root:
            raise SpecError(
                f"run {run.run_id!r} is kept in {run.storage.uri}, which no training job reaches; "
                f"give --storage {root}"
            )
        look = self._look(run)
        if look.state.status == "SUCCEEDED":
            return handle
        if any(state.is_malformed for state in look.states.values()):
            raise RetryableError(f"{look.state.reason}; whether it trains is not known: try again")
        if look.state.has_ended or not look.state.is_submitted:
            self._begin(run, look, root)
        else:
            self._adopt(run, look)
            if look.parts is not None:
                self._go_on(run, look, look.parts, look.round)
        return handle

    def status(self, handle: Handle) -> JobState:
        return self._look(handle.open()).state

    def logs(self, handle: Handle, *, follow: bool = False) -> Iterator[str]:
        run = handle.open()
        log = JobLogs(self.aws, tells_hosts=run.spec.sagemaker.instance_count > 1)
        has_ended = False
        while not has_ended:
            has_ended = not follow or self._look(run).state.has_ended
            made = newest(read_submissions(run)).values()
            jobs = [(one.job_name(run), one.label) for one in made]
            yield from log.read_new(jobs)
            if follow:
                time.sleep(_LAST_LINES_S if has_ended else self.poll_interval_s)
        if follow:
            yield from log.read_new(jobs)

    def stop(self, handle: Handle) -> None:
        run = handle.open()
        look = self._look(run)
        if not any(state.is_malformed for state in look.states.values()) and (
            look.state.has_ended or not look.state.is_submitted
        ):
            return
        if look.parts is not None:
            begin_to_stop(run)  # whoever waits for the run starts no other job
        stop_wait_s = run.spec.sagemaker.stop_wait_s
        deadline = time.monotonic() + stop_wait_s
        asked: set[str] = set()
        while live := [
            one.job_name(run)
            for one, state in self._newest_states(run, read_submissions(run)).items()
            if not state.has_ended or state.is_malformed
        ]:
            for name in live:
                if name not in asked:
                    stop(self.aws, name)
                    asked.add(name)
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"run {handle.run_id!r}: SageMaker has not ended {', '.join(live)} within "
                    f"sagemaker.stop_wait_s={stop_wait_s}; look at "
                    f"{self.aws.console}#/jobs, and stop the run again"
                )
            time.sleep(min(self.poll_interval_s, 2.0))

    def list(self) -> list[Handle]:
        handles = {}
        for workload, run_id, storage in find_tagged(self.aws):
            name = sagemaker_name(workload, run_id)
            handles[storage, name] = Handle(self.name, workload, run_id, storage, name)
        return [*handles.values()]

    def fetch_model(self, handle: Handle, folder: Path) -> None:
        """Download the run's model.tar.gz and unpack it into `folder`, which must not exist yet.

        Raises:
            JobFailed: there is none, or it is not an archive of plain files (`ArchiveRefused`).
            As `status`.
        """
        run = handle.open()
        look = self._look(run)
        last = [one for one in look.made if one.part in (None, COMBINE)][-1:]
        uri = look.states[last[0]].model_uri if last else None
        if look.state.status != "SUCCEEDED" or uri is None or not uri.startswith("s3://"):
            raise JobFailed(
                f"run {handle.run_id!r} has no model.tar.gz: it is {look.state.status}"
                + (f" ({look.state.reason})" if look.state.reason else "")
            )
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with tempfile.TemporaryDirectory(prefix="emberline-") as scratch:
            archive = Path(scratch) / "model.tar.gz"
            with answers(), archive.open("wb") as file:
                self.aws.client("s3").download_fileobj(bucket, key, file)
            unpack(archive, folder)

    # How far it is

    def _look(self, run: Run) -> _Look:
        made = read_submissions(run)
        members = self._members(run)
        of_interest = [one for one in made if (one.part is None) == (not members)]
        states = self._newest_states(run, of_interest)
        for one in made:
            if one not in states:
                states[one] = self._ended_state(run, one)
        parts = None
        if members:
            round_ = max((one.round for one in of_interest), default=0)
            parts = self._parts(run, made, states, round_, is_stopping=is_stopping(run))
            of_parts = [states[one] for one in of_interest]
            state = state_of_parts(run, parts, of_parts, members)
        elif of_interest:
            (last,) = newest(of_interest).values()
            state = state_of_job(run, states[last])
            state.details["job"] = last.job_name(run)
            state.details["attempt"] = str(last.attempt)
        else:
            state = JobState("PENDING", "it has not been submitted", is_submitted=False)
        if states:
            jobs, region = states.values(), self.aws.region
            state.details.update(totals(jobs))
            state.details.update(costs(jobs, run.spec.sagemaker, region, has_ended=state.has_ended))
        return _Look(made, states, parts, state)

    def _members(self, run: Run) -> Sequence[str]:
        """Those that have training jobs of their own."""
        members = list(run.spec.families())
        return members if run.spec.sagemaker.max_parallel_jobs and len(members) > 1 else []

    def _newest_states(
        self, run: Run, made: Sequence[Submission]
    ) -> dict[Submission, TrainingJobState]:
        return {one: describe(self.aws, one.job_name(run)) for one in newest(made).values()}

    def _ended_state(self, run: Run, one: Submission) -> TrainingJobState:
        """Of a job that another has followed: it is asked for once."""
        name = one.job_name(run)
        if name not in self._ended:
            state = describe(self.aws, name)
            if not state.has_ended or state.is_malformed:
                return state
            self._ended[name] = state
        return self._ended[name]

    def _parts(
        self,
        run: Run,
        made: Sequence[Submission],
        states: Mapping[Submission, TrainingJobState],
        round_: int,
        *,
        is_stopping: bool,
    ) -> Parts:
        assert run.spec.sagemaker.max_parallel_jobs is not None, "else there are no parts"
        num_tries = Counter((one.part, one.round) for one in made)
        return look_at_parts(
            self._members(run),
            {
                part: PartJob(one, states[one], num_tries[part, one.round])
                for part, one in newest(made).items()
                if part is not None
            },
            round_=round_,
            max_parallel=run.spec.sagemaker.max_parallel_jobs,
            max_attempts=run.spec.sagemaker.max_attempts,
            is_stopping=is_stopping,
        )

    # Training jobs

    def _begin(self, run: Run, look: _Look, root: str) -> None:
        """Begin another round, with the data as they are now."""
        round_ = look.round + 1
        parts = None
        if look.parts is not None:
            parts = self._parts(run, look.made, look.states, round_, is_stopping=False)
        due: Sequence[str | None] = [None] if parts is None else parts.due
        self._requests(run, look, round_, due, {})  # what is wrong is said before data travel
        channels = upload_channels(
            run.spec, root, self.aws, kms_key=run.spec.sagemaker.kms_key, on_upload=self.on_upload
        )
        begin_round(run, channels)
        if parts is not None:
            self._go_on(run, look, parts, round_)
        else:
            self._start(run, self._requests(run, look, round_, due, channels))

    def _go_on(self, run: Run, look: _Look, parts: Parts, round_: int) -> None:
        """Start the parts that are due, once it is noted which members have none."""
        if not parts.due:
            return
        states = {one.part: look.states[one] for one in newest(look.made).values()}
        for member, reason in parts.failed.items():
            run.workload.fail_member(run, member, reason, states[member].created_at)
        self._start(run, self._requests(run, look, round_, parts.due, read_channels(run)))

    def _start(self, run: Run, requests: Mapping[Submission, Mapping[str, Any]]) -> None:
        for made, request in requests.items():
            create(self.aws, request)
            write_submission(run, made)

    def _adopt(self, run: Run, look: _Look) -> None:
        """Have the jobs that another step has started, and may have left, belong to this one."""
        step = this_step()
        if step is None:
            return
        for one in newest(look.made).values():
            if not look.states[one].has_ended:
                adopt(self.aws, one.job_name(run), step)

    def _requests(
        self,
        run: Run,
        look: _Look,
        round_: int,
        due: Sequence[str | None],
        channels: Mapping[str, str],
    ) -> dict[Submission, dict[str, Any]]:
        last = newest(look.made)
        attempts = {part: last[part].attempt + 1 if part in last else 1 for part in due}
        made = [Submission(round_, attempt, part) for part, attempt in attempts.items()]
        return {
            one: training_job_request(
                run.spec,
                run.spec.sagemaker,
                run_id=run.run_id,
                name=one.job_name(run),
                owner=owner(),
                channels=channels,
                environment=job_environment(run.spec.sagemaker),
                max_run_s=self._max_run_s(run, look, one.part),
                part=one.part,
            )
            for one in made
        }

    def _max_run_s(self, run: Run, look: _Look, part: str | None) -> int:
        num_jobs = 1 if part is None else len(self._members(run)) + 1
        earlier = [state for one, state in look.states.items() if one.part == part]
        return max_run_s_of_part(run.spec.sagemaker, self.aws.region, num_jobs, earlier)


def owner() -> str:
    """Who submits, for a tag."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
