"""Runs on Kubeflow: submitted once, followed through faults, and ended with the exit code of the
step that failed. The API is an emulator on loopback; the client is KFP's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import kubeflow_api, submission
from pipelines.compilation import Variant, compiled
from pipelines.kubeflow import Kubeflow, PipelineRun, Step
from pipelines.pipeline_display import Display
from ray_jobs.attempts import PIPELINE_RUN, Attempt
from ray_jobs.errors import (
    DataError,
    EmberlineError,
    GateRefused,
    JobFailed,
    PreflightError,
    RetryableError,
    SpecError,
    Stopped,
)
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.spec import load_spec
from tests.kubeflow_emulator import KubeflowEmulator

GCODE = Variant("gcode")
STEPS = (Step("read-logs", "SUCCEEDED"), Step("train-member", "RUNNING", num=5, num_ended=1))


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowEmulator]:
    monkeypatch.setattr(submission, "_SETTLE_S", 0.01)
    monkeypatch.setattr(kubeflow_api, "TIMEOUT_S", 1)
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    with KubeflowEmulator() as server:
        yield server


@pytest.fixture
def order(emulator: KubeflowEmulator, tmp_path: Path):
    """What to submit to it, as a description and options say."""

    def make(run_id: str = "a", *overrides: str, variant: Variant = GCODE, **more: Any) -> Any:
        keys = [f"kubeflow.endpoint={emulator.endpoint}", f"kubeflow.volumes.runs={tmp_path}"]
        job = load_spec("gcode", overrides=[*keys, *overrides], storage=str(tmp_path))
        return submission.order(variant, job, run_id, **more)

    return make


def submit(order: Any, **options: Any) -> submission.Submitted:
    return submission.submit(order, interval_s=0.02, **options)


def test_a_run_is_uploaded_started_followed_and_linked_to(
    emulator: KubeflowEmulator, order, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.steps = {"read-logs": "SUCCEEDED", "train": "SUCCEEDED"}  # among other nodes
    done = submit(order("a", "kubeflow.service_account=trainer", "kubeflow.ui=https://ui.example"))
    (run,) = emulator.runs.values()
    assert done.run.status == "SUCCEEDED"
    assert done.is_new
    assert done.url == f"https://ui.example/#/runs/details/{run.run_id}"
    assert (run.display_name, run.service_account) == ("gcode/a", "trainer")
    assert run.runtime_config.parameters["run_id"] == "a"
    assert emulator.experiments[run.experiment_id].display_name == "gcode"
    said = capsys.readouterr().err
    assert f"run a submitted: {done.url}" in said
    assert "the run running" in said
    assert "train succeeded" in said
    assert "driver" not in said
    assert "executor" not in said


def test_on_a_terminal_there_is_a_table() -> None:
    written = StringIO()
    run = PipelineRun("1", "gcode/a", "RUNNING", "RUNNING", datetime.now(UTC), {}, STEPS)
    with Display(Console(file=written, force_terminal=True, width=80)) as display:
        display.show(run)
        display.waits("Kubeflow Pipelines at http://kfp does not answer")
    shown = written.getvalue()
    assert "read-logs" in shown
    assert "running, 1 of 5" in shown
    assert "does not answer" in shown


def test_the_items_of_a_loop_are_one_step(
    emulator: KubeflowEmulator, order, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.steps = {"prepare": "SUCCEEDED", "train-member": "SUCCEEDED PENDING FAILED"}
    emulator.script = ["FAILED"]
    with pytest.raises(RetryableError, match="step train-member failed with no word"):
        submit(order("a"))
    assert "train-member failed, 2 of 3" in capsys.readouterr().err


def test_the_version_is_the_compiled_pipeline_and_is_uploaded_once(
    emulator: KubeflowEmulator, order
) -> None:
    first, second = submit(order("a")), submit(order("b"))
    assert first.version.name == second.version.name
    ((version, text),) = emulator.uploaded.items()
    expected = compiled(GCODE, first.order.job)
    assert text == expected.text
    assert emulator.versions[version].name == f"gcode-{expected.digest[:12]}"
    assert expected.digest in emulator.versions[version].description
    third = submit(order("c", "kubeflow.retries.num=5"))
    assert third.version.name != first.version.name
    assert len(emulator.pipelines) == 1  # of which these are two versions
    assert len(emulator.versions) == 2


def test_the_same_run_id_is_attached_to(emulator: KubeflowEmulator, order) -> None:
    assert submit(order("a"), detach=True).is_new
    again = submit(order("a"))
    assert not again.is_new
    assert again.run.status == "SUCCEEDED"
    assert emulator.count("POST", "/runs$") == 1
    with pytest.raises(SpecError, match="run 'a' exists at Kubeflow with another job description"):
        submit(order("a", "seed=1"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/runs$", "lost"),
        ("/runs$", "unavailable"),
        ("/runs$", "hangs"),
    ],
)
def test_a_submission_that_is_not_answered_makes_one_run(
    emulator: KubeflowEmulator, order, path: str, kind: str
) -> None:
    emulator.fail("POST", path, kind)
    assert submit(order("a")).run.status == "SUCCEEDED"
    assert len(emulator.runs) == 1


def test_two_that_submit_at_once_share_the_first_run(
    emulator: KubeflowEmulator, order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_SETTLE_S", 1.1)
    together = threading.Barrier(2)
    create = Kubeflow.create_run

    def after_both_have_looked(self: Kubeflow, *args: Any) -> Any:
        together.wait(20)
        return create(self, *args)

    monkeypatch.setattr(Kubeflow, "create_run", after_both_have_looked)
    orders = [order("a"), order("a")]
    ready = compiled(GCODE, orders[0].job)  # KFP's compiler is for one thread
    monkeypatch.setattr(submission, "compiled", lambda *_: ready)
    found: list[submission.Submitted] = []
    threads = [threading.Thread(target=lambda one=one: found.append(submit(one))) for one in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({done.run.id for done in found}) == 1
    assert sorted(done.is_new for done in found) == [False, True]
    assert len(emulator.runs) == 1


def test_what_is_followed_may_not_answer_for_a_while(
    emulator: KubeflowEmulator, order, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.fail("GET", "/runs/[0-9a-f-]+$", "unavailable", times=3)
    assert submit(order("a")).run.status == "SUCCEEDED"
    said = capsys.readouterr().err
    assert said.count("does not answer (503: no healthy upstream)") == 1


def test_following_ends_when_the_patience_does(
    emulator: KubeflowEmulator, order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "PATIENCE_S", 0.1)
    emulator.fail("GET", "/runs/[0-9a-f-]+$", "unavailable", times=1000)
    again = "Once it answers, give the same command again, with --run-id a: it is one run"
    with pytest.raises(RetryableError, match=again):
        submit(order("a"))
    assert [run.state for run in emulator.runs.values()] == ["PENDING"]  # it goes on


def failing(emulator: KubeflowEmulator, order, error: Exception | None) -> EmberlineError:
    """How the command ends if a step does with this error."""
    emulator.script = ["RUNNING", "FAILED"]
    emulator.steps = {"read-logs": "SUCCEEDED", "train": "FAILED"}
    wanted = order("a")
    started = submit(wanted, detach=True)
    if error is not None:
        environ = {PIPELINE_RUN: started.run.id}
        attempt = Attempt.of(wanted.job.storage, "train", {"run": "x"}, environ)
        assert attempt
        attempt.record(error)
    with pytest.raises(EmberlineError) as caught:
        submit(wanted)
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no column x"), 3), (GateRefused("no column x"), 6)]
)
def test_a_step_that_failed_for_good_gives_its_reason_and_its_exit_code(
    emulator: KubeflowEmulator, order, error: EmberlineError, code: int
) -> None:
    raised = failing(emulator, order, error)
    assert raised.exit_code == code
    assert str(raised).startswith("step train failed: no column x (http://127.0.0.1:")


def test_a_step_that_left_no_word_may_be_tried_again(emulator: KubeflowEmulator, order) -> None:
    raised = failing(emulator, order, None)
    assert isinstance(raised, RetryableError)
    assert "step train failed with no word, as of a pod that was lost; go on with" in str(raised)
    emulator.script = ["RUNNING", "SUCCEEDED"]
    emulator.steps = dict.fromkeys(emulator.steps, "SUCCEEDED")
    resumed = submit(order("a"), resume=True)
    assert resumed.run.status == "SUCCEEDED"
    assert len(emulator.runs) == 1


def test_kfps_own_words_are_passed_on(emulator: KubeflowEmulator, order) -> None:
    emulator.step_error = "OOMKilled (exit code 137)"
    assert "step train failed: OOMKilled (exit code 137)" in str(failing(emulator, order, None))


def test_an_interrupt_leaves_the_run_and_says_how_to_go_on(
    emulator: KubeflowEmulator,
    order,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator.script = ["RUNNING"]
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        submit(order("a"))
    (run,) = emulator.runs.values()
    assert run.state == "RUNNING"
    said = capsys.readouterr().err
    assert f"interrupted: the run goes on at {emulator.endpoint}" in said
    assert "attach   emberline pipelines submit gcode --run-id a, with the same options" in said
    assert "stop     emberline pipelines stop gcode --run-id a" in said


def test_an_interrupt_may_stop_the_run(
    emulator: KubeflowEmulator,
    order,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator.script = ["RUNNING"]
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        submit(order("a"), stop_on_interrupt=True)
    assert [run.state for run in emulator.runs.values()] == ["CANCELED"]
    assert "stopped: none of its steps is left running" in capsys.readouterr().err
    with pytest.raises(Stopped, match="the run was stopped at Kubeflow"):
        submit(order("a"))


def interrupt_after(num_looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(num_looks))
    look = Kubeflow.run

    def interrupted(self: Kubeflow, run_id: str) -> Any:
        if next(looks, None) is None:
            monkeypatch.setattr(Kubeflow, "run", look)
            raise KeyboardInterrupt
        return look(self, run_id)

    monkeypatch.setattr(Kubeflow, "run", interrupted)


def test_a_run_is_stopped_by_its_id(emulator: KubeflowEmulator, order) -> None:
    emulator.script = ["RUNNING"]
    wanted = order("a")
    submit(wanted, detach=True)
    stopping = submission.stop(GCODE, wanted.job, "a")
    assert [run.status for run in stopping.runs] == ["STOPPED"]
    assert submission.stop(GCODE, wanted.job, "a").runs[0].status == "STOPPED"  # nothing to do
    with pytest.raises(SpecError, match=r"has no run 'gcode/b' in the experiment 'gcode'"):
        submission.stop(GCODE, wanted.job, "b")


def test_a_run_that_ends_while_it_is_stopped_has_ended(
    emulator: KubeflowEmulator, order, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order("a")
    made = submit(wanted, detach=True)
    terminate = Kubeflow.terminate

    def too_late(self: Kubeflow, run_id: str) -> None:
        emulator.runs[made.run.id].state = "SUCCEEDED"
        terminate(self, run_id)

    monkeypatch.setattr(Kubeflow, "terminate", too_late)
    assert [run.status for run in submission.stop(GCODE, wanted.job, "a").runs] == ["SUCCEEDED"]


def test_a_retraining_has_its_own_parameters(emulator: KubeflowEmulator, order) -> None:
    given = {"data": ["s3://new/a.csv"], "on": "always", "since": ""}
    wanted = order("a", variant=Variant("gcode", retrains=True), retraining=given)
    submit(wanted)
    (run,) = emulator.runs.values()
    assert run.display_name == "gcode-retraining/a"
    assert run.runtime_config.parameters == {**given, "storage": wanted.job.storage}


# Who asks, and what answers


def test_a_token_is_sent_and_read_anew(
    emulator: KubeflowEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    spec = KubeflowSpec(endpoint=emulator.endpoint, token_path=str(path))
    with pytest.raises(PreflightError, match=r"token_path .* cannot be read"):
        Kubeflow(spec)
    path.write_text("first\n")
    emulator.token = "first"
    client = Kubeflow(spec)
    assert client.find_experiment("fire") is None
    emulator.token = "second"
    with pytest.raises(PreflightError) as caught:
        client.find_experiment("fire")
    assert str(caught.value) == (
        f"Kubeflow Pipelines at {emulator.endpoint} refuses the request (401: Request header "
        "error: there is no user identity header); set KFP_TOKEN, or kubeflow.token_path to the "
        "file of a service account's token that may use it"
    )
    path.write_text("second")
    assert client.find_experiment("fire") is None
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    assert Kubeflow(KubeflowSpec(endpoint=emulator.endpoint)).find_experiment("fire") is None
    monkeypatch.setenv("KFP_TOKEN", "third")
    emulator.token = "third"
    assert client.find_experiment("fire") is None


def asked(endpoint: str) -> EmberlineError:
    with pytest.raises(EmberlineError) as caught:
        Kubeflow(KubeflowSpec(endpoint=endpoint)).find_experiment("fire")
    return caught.value


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("unavailable", 5, "does not answer (503: no healthy upstream). Once it answers, give"),
        ("hangs", 5, "does not answer (no answer in 1 s). Once it answers, give"),
        ("lost", 5, "does not answer ("),
        ("page", 3, "is not the API of Kubeflow Pipelines, but maybe a page that asks to sign in;"),
    ],
)
def test_what_goes_wrong_is_said(
    emulator: KubeflowEmulator, kind: str, code: int, message: str
) -> None:
    emulator.fail("GET", "/experiments", kind)
    raised = asked(emulator.endpoint)
    assert raised.exit_code == code
    assert message in str(raised)


def test_an_endpoint_that_nobody_listens_at_may_be_there_later() -> None:
    raised = asked("http://127.0.0.1:9")
    assert raised.exit_code == 5
    assert "does not answer ([Errno 111] Connection refused)" in str(raised)


def test_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, emulator: KubeflowEmulator) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    with pytest.raises(SpecError, match="where is Kubeflow Pipelines"):
        Kubeflow(KubeflowSpec())
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", emulator.endpoint)
    assert Kubeflow(KubeflowSpec()).find_experiment("fire") is None


def test_what_kfp_refuses_is_passed_on(emulator: KubeflowEmulator, order) -> None:
    client = Kubeflow(KubeflowSpec(endpoint=emulator.endpoint))
    version = client.upload(compiled(GCODE, order().job))
    experiment = client.experiment("gcode")
    with pytest.raises(JobFailed, match="parameter spec is not optional, yet has neither"):
        client.create_run("x", version, experiment, {})


def test_lists_are_read_to_their_end(
    emulator: KubeflowEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeflow_api, "_PAGE_SIZE", 2)
    client = Kubeflow(KubeflowSpec(endpoint=emulator.endpoint))
    version = client.upload(compiled(GCODE, load_spec("gcode")))
    experiment = client.experiment("gcode")
    made = [client.create_run("x", version, experiment, {"spec": ""}).id for _ in range(5)]
    assert sorted(run.id for run in client.runs("x", experiment)) == sorted(made)


@pytest.mark.parametrize(
    ("storage", "volumes", "is_seen"),
    [
        ("s3://bucket/runs", (), True),
        ("./runs", (), False),
        ("/runs/fire", ("kubeflow.volumes.c=/runs",), True),
        ("/runs-old", ("kubeflow.volumes.c=/runs",), False),
    ],
)
def test_steps_on_a_cluster_must_see_the_storage(
    storage: str, volumes: Sequence[str], is_seen: bool
) -> None:
    job = load_spec("fire", overrides=volumes, storage=storage)
    if is_seen:
        submission.check(job)
        return
    with pytest.raises(SpecError) as caught:
        submission.check(job)
    assert str(caught.value) == (
        f"storage {storage!r} is a folder of this machine, and steps on a cluster do not see it; "
        "give --storage s3://BUCKET/PREFIX, or a folder of a claim: "
        "--set kubeflow.volumes.CLAIM=/runs --storage /runs"
    )


@pytest.mark.parametrize(("place", "key"), [("ray", "ray.address"), ("rayjob", "rayjob.image")])
def test_a_step_that_trains_elsewhere_is_told_where(place: str, key: str) -> None:
    job = load_spec("fire", overrides=[f"kubeflow.train_on={place}"], storage="s3://b/runs")
    with pytest.raises(SpecError) as caught:
        submission.check(job)
    said = f"kubeflow.train_on={place} needs {key}; set it, or train in the step"
    assert str(caught.value) == said


def test_a_malformed_run_id_reaches_no_cluster(emulator: KubeflowEmulator, order) -> None:
    with pytest.raises(SpecError, match="run id 'a/b': use letters, digits"):
        order("a/b")
    assert not emulator.requests
