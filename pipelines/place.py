"""Place: where a run is carried out, as its folder says."""

from __future__ import annotations

from ray_jobs.errors import SpecError
from ray_jobs.run import Run
from ray_jobs.sections import PLACE, JobSpec
from ray_jobs.targets import connect


def placed(spec: JobSpec) -> JobSpec:
    """The description with the storage that its target uses.

    Raises:
        SpecError: the description lacks what the target needs.
    """
    if spec.target == "local":
        return spec
    storage = connect(spec.target, spec).storage(spec)
    return spec.model_copy(update={"storage": storage})


def take_over(run: Run) -> None:
    """Have the run's folder say where it is carried out from now on.

    Raises:
        SpecError: it is at work elsewhere.
        RetryableError: whether it is, cannot be known now.
    """
    stored = Run.open(run.spec.storage, run.spec.workload, run.run_id)
    if _place(stored.spec) == _place(run.spec):
        return
    elsewhere = connect(stored.spec.target, stored.spec)
    state = elsewhere.status(elsewhere.handle(stored))
    if state.is_submitted and not state.has_ended:
        raise SpecError(
            f"run {run.run_id!r} is at work on {stored.spec.target}; attach to it with "
            f"--target {stored.spec.target}, or stop it: emberline stop {run.run_id} "
            f"--storage {run.storage.uri}"
        )
    run.write_spec()


def _place(spec: JobSpec) -> dict[str, object]:
    return spec.model_dump(include=set(PLACE))
