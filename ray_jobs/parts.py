"""Parts of a run that are jobs of their own, and what each leaves for the step that waits for it.

`parts/<part>.json` in the run's folder is written last, like a run's `result.json`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.errors import EXIT_OK, EmberlineError, SpecError, Stopped
from ray_jobs.result import Status
from ray_jobs.run import SPEC, Run

TRAIN, SWEEP = "train", "sweep"
_MEMBER = "member-"  # no name of a member has a hyphen


class PartOutcome(BaseModel):
    """How a part of a run has ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Status
    started_at: datetime
    ended_at: datetime
    exit_code: int = EXIT_OK
    reason: str | None = None  # why it FAILED or was STOPPED
    result: dict[str, Any] | None = None  # of the function that carried it out


def member_part(name: str) -> str:
    """The part that trains one member."""
    return f"{_MEMBER}{name}"


def member_of(run: Run, part: str) -> str | None:
    """The member that a part trains; None if it trains none.

    Raises:
        SpecError: there is no such part of the run.
    """
    members = {member_part(name): name for name in run.spec.families()}
    known = (TRAIN, SWEEP, *members)
    if part not in known:
        raise SpecError(f"no part {part!r} of the run; there is {', '.join(known)}")
    return members.get(part)


def job_words(run: Run, part: str | None = None, num_cpus: int | None = None) -> list[str]:
    """What `python -m` carries out a run with, or the part of it that is named.

    Args:
        num_cpus: that it may use; None: as its description says.
    """
    if part is not None:
        words = ["ray_jobs.part", "--run", run.uri, "--part", part]
        return words if num_cpus is None else [*words, "--num-cpus", str(num_cpus)]
    words = [
        "ray_jobs.sweep" if run.spec.sweeps else "ray_jobs.train",
        "--spec", run.storage.display(run.path(SPEC)), "--run-id", run.run_id,
        "--storage", run.storage.uri,
    ]  # fmt: skip
    return words if num_cpus is None else [*words, "--set", f"resources.num_cpus={num_cpus}"]


def read_outcome(run: Run, part: str) -> PartOutcome | None:
    """How the part has ended; None while it has not.

    Raises:
        ValueError: the file is not an outcome of this version.
        RetryableError: a remote storage does not answer.
    """
    path = _path(run, part)
    if not run.storage.exists(path):
        return None
    try:
        return PartOutcome.model_validate_json(run.storage.read_bytes(path))
    except ValidationError:
        where = run.storage.display(path)
        raise ValueError(f"{where} is not an outcome of this version") from None


def begin_part(run: Run, part: str) -> datetime:
    """Forget how an earlier attempt ended, and that it was to stop; when this one begins."""
    path = _path(run, part)
    if run.storage.exists(path):
        run.storage.delete(path)
    run.clear_stop()
    return datetime.now(UTC)


def end_part(run: Run, part: str, started: datetime, result: BaseModel) -> None:
    """Leave what the part came to."""
    _write(run, part, started, status="SUCCEEDED", result=result.model_dump(mode="json"))


def fail_part(run: Run, part: str, started: datetime, error: EmberlineError) -> None:
    """Leave why the part did not end well."""
    status: Status = "STOPPED" if isinstance(error, Stopped) else "FAILED"
    _write(run, part, started, status=status, reason=str(error), exit_code=error.exit_code)


def _write(run: Run, part: str, started: datetime, *, status: Status, **fields: Any) -> None:
    outcome = PartOutcome(status=status, started_at=started, ended_at=datetime.now(UTC), **fields)
    run.storage.write_text(_path(run, part), outcome.model_dump_json(indent=2))


def _path(run: Run, part: str) -> str:
    return run.path("parts", f"{part}.json")
