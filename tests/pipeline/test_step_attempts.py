"""A step that fails is tried again where that may help, and ends at once where it will not: real
components, carried out by KFP's local runner with its retries."""

import re
from pathlib import Path

import pytest
from kfp import dsl, local

from components.step import root_of, step
from ray_jobs.attempts import PIPELINE_RUN, Attempt
from ray_jobs.errors import DataError, EmberlineError, GateRefused, RetryableError
from ray_jobs.storage import Storage

NUM_RETRIES = 3


@step
def fail(run: str, kind: str) -> str:
    """Note the attempt beside the storage root; fail as `kind` says, or from the third on not."""
    import os
    import signal
    from pathlib import Path

    from ray_jobs import errors

    log = Path(run).parents[2] / "attempts"
    with log.open("a") as file:
        file.write(f"{kind}\n")
    num_attempts = len(log.read_text().splitlines())
    if kind == "killed" and num_attempts < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if hasattr(errors, kind) and num_attempts < 3:
        raise getattr(errors, kind)(f"this is {kind}")
    if kind == "bug":
        raise ZeroDivisionError("no number")
    return run


@pytest.fixture
def carry_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the step with retries; returns how often its body began, and the log."""
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "kfp"),
        raise_on_error=False,
    )
    monkeypatch.setenv(PIPELINE_RUN, "0123-abcd")

    def run(kind: str) -> tuple[int, str]:
        @dsl.pipeline(name="failing")
        def failing() -> None:
            fail(run=f"{tmp_path}/root/fire/a#00ff", kind=kind).set_retry(NUM_RETRIES)

        failing()
        log = tmp_path / "attempts"
        num_attempts = len(log.read_text().splitlines()) if log.exists() else 0
        return num_attempts, capfd.readouterr().out

    return run


@pytest.mark.parametrize("kind", ["RetryableError", "killed"])
def test_what_may_pass_is_tried_again(carry_out, kind: str) -> None:
    num_attempts, log = carry_out(kind)
    assert num_attempts == 3
    assert re.search(r"Task .*'fail'.* finished with status .*SUCCESS", log)


@pytest.mark.parametrize("kind", ["DataError", "bug"])
def test_what_will_not_pass_ends_at_once_with_the_same_words(carry_out, kind: str) -> None:
    num_attempts, log = carry_out(kind)
    said = "no number" if kind == "bug" else f"this is {kind}"
    assert num_attempts == 1
    again = f"{said} (so ended the attempt before; a retry would end the same way)"
    assert log.count(again) == NUM_RETRIES
    assert re.search(r"Task .*'fail'.* finished with status .*FAILURE", log)


def test_without_a_pipeline_on_a_cluster_nothing_is_written_down(
    carry_out, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(PIPELINE_RUN)
    num_attempts, _ = carry_out("DataError")
    assert num_attempts == 3
    assert not (tmp_path / "root").exists()


def attempt(root: Path, environ: dict[str, str], **inputs: str) -> Attempt:
    found = Attempt.of(str(root), "train", inputs, {PIPELINE_RUN: "1", **environ})
    assert found
    return found


def test_an_attempt_knows_its_pipelines_run_its_step_and_its_inputs(tmp_path: Path) -> None:
    attempt(tmp_path, {}, run="a").record(DataError("column x is missing"))
    for other in (
        attempt(tmp_path, {}, run="b"),
        attempt(tmp_path, {PIPELINE_RUN: "2"}, run="a"),
        Attempt.of(str(tmp_path), "evaluate", {"run": "a"}, {PIPELINE_RUN: "1"}),
    ):
        other.check()  # none of these has failed
    with pytest.raises(EmberlineError, match="column x is missing") as caught:
        attempt(tmp_path, {"KFP_RETRY_INDEX": "1"}, run="a").check()
    assert caught.value.exit_code == 3


def test_a_step_that_a_user_has_tried_again_is_tried(tmp_path: Path) -> None:
    attempt(tmp_path, {}, run="a").record(GateRefused("too weak"))
    attempt(tmp_path, {"KFP_RETRY_INDEX": "0"}, run="a").check()
    attempt(tmp_path, {"KFP_RETRY_INDEX": "1"}, run="a").check()


def test_a_failure_that_may_pass_is_not_noted(tmp_path: Path) -> None:
    attempt(tmp_path, {}, run="a").record(RetryableError("a node was lost"))
    assert not list(Storage(tmp_path).list("pipelines"))


@pytest.mark.parametrize(
    ("inputs", "root"),
    [
        ({"run": "s3://b/runs/fire/a#0f"}, "s3://b/runs"),
        ({"member": "s3://b/runs/fire/a#0f/checkpoints/lstm"}, "s3://b/runs"),
        ({"model": "fire", "storage": "s3://b/runs"}, "s3://b/runs"),
        ({"spec": "storage: /data/runs\nseed: 1", "run_id": ""}, "/data/runs"),
        ({"spec": "- no", "run_id": ""}, None),
        ({}, None),
    ],
)
def test_a_steps_inputs_name_its_storage(inputs: dict[str, str], root: str | None) -> None:
    assert root_of(inputs) == root
