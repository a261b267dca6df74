"""How a run's end is told: by its steps' journal, or else by their log."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.errors import EmberlineError, PreflightError, RetryableError
from ray_jobs.lifecycle import carry_out, failure_of
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.storage import StorageUnavailable

LOG = "artifacts/pipeline.log"
TRACEBACK = """\
    Traceback (most recent call last):
      File "members.py", line 87, in _collect
    {error}

Traceback (most recent call last):
RuntimeError: Pipeline 'fire' finished with status FAILURE.
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(load_spec("fire", storage=str(tmp_path)), "ended")


def fail_step(run: Run, error: Exception) -> None:
    with pytest.raises(type(error)), run.journal("prepare").phase():
        raise error


def test_a_step_that_told_its_failure(run: Run) -> None:
    fail_step(run, PreflightError("2 checks failed:\nthe disk is full\nno GPU"))
    error = "ray_jobs.errors.PreflightError: 2 checks failed:"
    run.storage.write_text(run.path(LOG), TRACEBACK.format(error=error))
    failure = failure_of(run, LOG)
    assert str(failure) == "2 checks failed:\nthe disk is full\nno GPU"
    assert failure.exit_code == 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ray_jobs.storage.StorageUnavailable", StorageUnavailable),
        ("ray_jobs.errors.RetryableError", RetryableError),
        ("ray_jobs.errors.PreflightError", PreflightError),
    ],
)
def test_a_step_that_could_not_reach_the_journal(
    run: Run, name: str, kind: type[EmberlineError]
) -> None:
    fail_step(run, PreflightError("of an earlier attempt"))
    error = f"{name}: storage 's3://b' does not answer (AWS Error SLOW_DOWN)"
    run.storage.write_text(run.path(LOG), TRACEBACK.format(error=error))
    failure = failure_of(run, LOG)
    assert type(failure) is kind
    assert str(failure) == "storage 's3://b' does not answer (AWS Error SLOW_DOWN)"


def test_a_fault_of_the_code_is_not_retried(run: Run) -> None:
    run.storage.write_text(run.path(LOG), TRACEBACK.format(error="KeyError: 'x'"))
    failure = failure_of(run, LOG)
    assert str(failure).startswith("the pipeline ended early: KeyError: 'x' (see ")
    assert failure.exit_code == 4


def test_a_storage_that_is_gone_hides_no_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result cannot be written: the error itself is what the caller gets."""

    def lose_storage() -> None:
        def refuse(*_: object) -> None:
            raise StorageUnavailable("storage 's3://b' does not answer")

        monkeypatch.setattr(type(run.storage), "write_bytes", refuse)
        raise StorageUnavailable("a checkpoint cannot be written")

    with pytest.raises(StorageUnavailable, match="a checkpoint cannot be written"):
        carry_out(run, lose_storage)
