"""`emberline pipelines submit`: a pipeline's run on Kubeflow, followed to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.compilation import Variant, compiled
from pipelines.kubeflow import Kubeflow, PipelineRun, Version
from pipelines.pipeline_display import Display
from ray_jobs.errors import EXIT_OK, EmberlineError, JobFailed, RetryableError, SpecError, Stopped
from ray_jobs.run import check_run_id, new_run_id
from ray_jobs.sections import JobSpec

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE_S = 300.0  # for an API that does not answer while a run is followed
_NUM_TRIES = 3  # to create a run, if it is not known whether it was created
_SETTLE_S = 1.1  # KFP tells the age of runs in seconds


@dataclass(frozen=True)
class Order:
    """What is to be run: a pipeline, and its parameters."""

    variant: Variant
    job: JobSpec
    run_id: str
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run at KFP, one run's alone."""
        return f"{self.variant.name}/{self.run_id}"

    @property
    def experiment(self) -> str:
        return self.job.kubeflow.experiment or self.variant.workload


def order(
    variant: Variant, job: JobSpec, run_id: str | None, retraining: Mapping[str, Any] | None = None
) -> Order:
    """What to submit for a job.

    Args:
        retraining: parameters of the retraining pipeline.

    Raises:
        SpecError: the run id is malformed; or as `check`.
    """
    check(job)
    run_id = run_id or new_run_id()
    check_run_id(run_id)
    return Order(variant, job, run_id, parameters(job, run_id, retraining))


def parameters(
    job: JobSpec, run_id: str, retraining: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Of the pipeline.

    Args:
        run_id: "": as the pipeline's own run.
    """
    if retraining is not None:
        return {**retraining, "storage": job.storage}
    return {"spec": job.to_yaml(), "run_id": run_id}


def check(job: JobSpec) -> None:
    """
    Raises:
        SpecError: steps on a cluster do not see the storage, or are not told where to train.
    """
    from pathlib import PurePosixPath

    place = job.kubeflow.train_on
    missing = {
        "ray": "ray.address" if job.ray.address is None else None,
        "rayjob": "rayjob.image" if job.rayjob.image is None else None,
    }.get(place)
    if missing:
        raise SpecError(f"kubeflow.train_on={place} needs {missing}; set it, or train in the step")
    if "://" in job.storage:
        return
    path = PurePosixPath(job.storage)
    if not any(path.is_relative_to(mount) for mount in job.kubeflow.volumes.values()):
        raise SpecError(
            f"storage {job.storage!r} is a folder of this machine, and steps on a cluster do not "
            "see it; give --storage s3://BUCKET/PREFIX, or a folder of a claim: "
            "--set kubeflow.volumes.CLAIM=/runs --storage /runs"
        )


@dataclass(frozen=True)
class Submitted:
    """A run at KFP, as it is now."""

    order: Order
    version: Version
    run: PipelineRun
    url: str
    is_new: bool = field(kw_only=True)
    exit_code: ClassVar[int] = EXIT_OK

    def to_json(self) -> str:
        run = self.run
        found = {
            "run_id": self.order.run_id,
            "workload": self.order.variant.workload,
            "status": run.status,
            "pipeline": self.order.variant.name,
            "version": self.version.name,
            "kubeflow_run": run.id,
            "url": self.url,
            "is_new": self.is_new,
            "steps": [asdict(step) for step in run.steps],
        }
        return json.dumps(found, indent=2)

    def print(self, console: Console) -> None:
        console.print(f"[bold]{self.order.name}[/] {self.run.status.lower()}", soft_wrap=True)
        console.print(f"version  {self.version.name}", soft_wrap=True, markup=False)
        console.print(f"link     {self.url}", soft_wrap=True, markup=False)
        console.print(f"storage  {self.order.job.storage}", soft_wrap=True, markup=False)


def submit(
    order: Order,
    *,
    resume: bool = False,
    detach: bool = False,
    stop_on_interrupt: bool = False,
    interval_s: float = 5.0,
) -> Submitted:
    """Upload the pipeline unless this version is there, start its run or attach to it, and follow
    it to its end.

    Args:
        resume: a run that has failed is taken up: its failed steps are carried out again.
        detach: return once it is submitted.
        stop_on_interrupt: an interrupt stops the run; else it goes on.

    Raises:
        EmberlineError: as KFP's API, or as the step that failed says.
        KeyboardInterrupt: after saying what becomes of the run.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    kubeflow = Kubeflow(order.job.kubeflow)
    run: PipelineRun | None = None
    try:
        with console.status(f"submitting to {kubeflow.endpoint}"):
            version = kubeflow.upload(compiled(order.variant, order.job))
            experiment = kubeflow.experiment(order.experiment)
            run, is_new = _started(kubeflow, order, version, experiment)
            if resume and run.status in ("FAILED", "STOPPED"):
                kubeflow.retry(run.id)
                run = kubeflow.run(run.id)
        url = kubeflow.link(run.id)
        console.print(
            f"run {order.run_id} {'submitted' if is_new else 'attached to'}: {url}", soft_wrap=True
        )
        if not detach:
            run = follow(kubeflow, run, console, interval_s=interval_s)
    except KeyboardInterrupt:
        _leave(kubeflow, order, run, console, stop=stop_on_interrupt)
        raise
    except RetryableError as error:
        raise RetryableError(f"{error}, with --run-id {order.run_id}: it is one run") from None
    if run.status in ("FAILED", "STOPPED") and not detach:
        raise failure_of(run, order, url)
    return Submitted(order, version, run, url, is_new=is_new)


def stop(variant: Variant, job: JobSpec, run_id: str) -> Stopping:
    """Stop a run, and wait until KFP has ended its steps' pods.

    Raises:
        SpecError: KFP has no such run.
        RetryableError: it has not ended in time.
    """
    kubeflow = Kubeflow(job.kubeflow)
    wanted = Order(variant, job, run_id, {})
    experiment = kubeflow.find_experiment(wanted.experiment)
    runs = kubeflow.runs(wanted.name, experiment) if experiment else []
    if not runs:
        raise SpecError(
            f"{kubeflow.endpoint} has no run {wanted.name!r} in the experiment "
            f"{wanted.experiment!r}"
        )
    for run in runs:
        if not run.has_ended:
            _terminate(kubeflow, run.id)
    return Stopping(wanted.name, [_ended(kubeflow, run.id) for run in runs])


@dataclass(frozen=True)
class Stopping:
    """A run that has ended."""

    name: str
    runs: Sequence[PipelineRun]
    exit_code: ClassVar[int] = EXIT_OK

    def to_json(self) -> str:
        return json.dumps([{"kubeflow_run": run.id, "status": run.status} for run in self.runs])

    def print(self, console: Console) -> None:
        for run in self.runs:
            console.print(f"{self.name}: {run.status.lower()}", soft_wrap=True)


def _started(
    kubeflow: Kubeflow, order: Order, version: Version, experiment: str
) -> tuple[PipelineRun, bool]:
    """The run of this name, and whether it was started now."""
    for tries_left in reversed(range(_NUM_TRIES)):
        found = kubeflow.runs(order.name, experiment)
        if found:
            _check_same(found[0], order)
            return found[0], False
        try:
            made = kubeflow.create_run(order.name, version, experiment, order.parameters)
        except RetryableError:  # it may have been created: the next look tells
            if not tries_left:
                raise
            time.sleep(_SETTLE_S)
            continue
        return _settled(kubeflow, order, made, experiment)
    raise AssertionError("unreachable")


def _settled(
    kubeflow: Kubeflow, order: Order, made: PipelineRun, experiment: str
) -> tuple[PipelineRun, bool]:
    """KFP lets two submitters create a run of the same name at the same time: both then keep the
    first, and whoever made the other deletes it."""
    time.sleep(_SETTLE_S)
    first = kubeflow.runs(order.name, experiment)[0]
    if first.id == made.id:
        return made, True
    _terminate(kubeflow, made.id)
    kubeflow.delete_run(made.id)
    _check_same(first, order)
    return first, False


def _check_same(found: PipelineRun, order: Order) -> None:
    """
    Raises:
        SpecError: the run that KFP has is of another job.
    """
    if "spec" not in order.parameters:
        is_same = dict(found.parameters) == dict(order.parameters)
    else:
        import yaml

        from ray_jobs.spec import parse_spec

        try:
            raw = yaml.safe_load(str(found.parameters.get("spec", "")))
            stored = parse_spec(raw if isinstance(raw, dict) else {}, source="the run")
        except (SpecError, yaml.YAMLError):  # of an older version
            is_same = False
        else:
            is_same = stored.digest() == order.job.digest()
    if not is_same:
        raise SpecError(
            f"run {order.run_id!r} exists at Kubeflow with another job description; take another "
            "--run-id, or repeat the first options to attach"
        )


def follow(
    kubeflow: Kubeflow, run: PipelineRun, console: Console, *, interval_s: float
) -> PipelineRun:
    """Look at a run until it has ended.

    Raises:
        RetryableError: the API has not answered for `PATIENCE_S`.
    """
    answered_at = time.monotonic()
    with Display(console) as display:
        display.show(run)
        while not run.has_ended:
            time.sleep(interval_s)
            try:
                run = kubeflow.run(run.id)
            except RetryableError as error:
                if time.monotonic() - answered_at > PATIENCE_S:
                    raise
                display.waits(str(error).partition(". Once")[0])
            else:
                answered_at = time.monotonic()
                display.show(run)
    return run


def failure_of(run: PipelineRun, order: Order, url: str) -> EmberlineError:
    """How a run has ended, with the exit code of the step that failed."""
    if run.status == "STOPPED":
        return Stopped(f"the run was stopped at Kubeflow ({url})")
    noted = _noted(order.job.storage, run.id)
    failed = [step for step in run.steps if step.state == "FAILED"]
    where = f"step {failed[-1].name} failed" if failed else "the pipeline failed"
    if noted:
        error: EmberlineError = JobFailed(f"{where}: {noted['reason']} ({url})")
        error.exit_code = noted["exit_code"]
        return error
    told = next((step.error for step in reversed(failed) if step.error), run.error)
    why = f": {told}" if told else " with no word, as of a pod that was lost"
    return RetryableError(f"{where}{why}; go on with --resume ({url})")


def _noted(root: str, pipeline_run: str) -> dict[str, Any] | None:
    """What the step that failed for good has noted, if it can be read from here."""
    from ray_jobs.attempts import read_failures
    from ray_jobs.storage import Storage

    try:
        return next(iter(read_failures(Storage(root), pipeline_run)), None)
    except (OSError, EmberlineError):  # a claim of the cluster, or a bucket closed to this machine
        return None


def _leave(
    kubeflow: Kubeflow, order: Order, run: PipelineRun | None, console: Console, *, stop: bool
) -> None:
    """Say what becomes of a run whose user leaves."""
    name = f"emberline pipelines {{}} {order.variant.options} --run-id {order.run_id}"
    if run is not None and stop:
        console.print(f"interrupted: stopping the run at {kubeflow.endpoint}")
        _terminate(kubeflow, run.id)
        _ended(kubeflow, run.id)
        console.print("stopped: none of its steps is left running. Go on with --resume")
        return
    goes_on = "goes on" if run is not None else "may have been submitted, and then goes on"
    console.print(f"interrupted: the run {goes_on} at {kubeflow.endpoint}")
    if run is not None:
        console.print(f"look     {kubeflow.link(run.id)}", soft_wrap=True)
    console.print(f"attach   {name.format('submit')}, with the same options", soft_wrap=True)
    console.print(f"stop     {name.format('stop')}", soft_wrap=True)


def _terminate(kubeflow: Kubeflow, run_id: str) -> None:
    """Have a run end, unless it has ended meanwhile."""
    try:
        kubeflow.terminate(run_id)
    except JobFailed:
        if not kubeflow.run(run_id).has_ended:
            raise


def _ended(kubeflow: Kubeflow, run_id: str, *, wait_s: float = 300.0) -> PipelineRun:
    deadline = time.monotonic() + wait_s
    while not (run := kubeflow.run(run_id)).has_ended:
        if time.monotonic() > deadline:
            raise RetryableError(
                f"{kubeflow.endpoint} has not ended the run in {wait_s:g} s; look at "
                f"{kubeflow.link(run_id)}"
            )
        time.sleep(1)
    return run
