"""`emberline pipelines` as typed, and what Kubeflow Pipelines is asked for.

Against an emulator of its API; and against a real server too, where EMBERLINE_TEST_KFP_ENDPOINT
names one that may be written to.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.compilation import Variant, compiled
from pipelines.kubeflow import Kubeflow, Trigger
from ray_jobs.attempts import PIPELINE_RUN, Attempt
from ray_jobs.errors import DataError, JobFailed
from ray_jobs.spec import load_spec
from tests.contract.shell import Shell
from tests.kubeflow_emulator import KubeflowEmulator

REAL = "EMBERLINE_TEST_KFP_ENDPOINT"


@pytest.fixture
def emulator() -> Iterator[KubeflowEmulator]:
    with KubeflowEmulator() as server:
        yield server


@pytest.fixture(params=["emulator", *(["server"] if REAL in os.environ else [])])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Of an API that starts runs, but need not carry them out."""
    if request.param == "emulator":
        server: KubeflowEmulator = request.getfixturevalue("emulator")
        server.script = ["PENDING"]
        return server.endpoint
    return os.environ[REAL]


@pytest.fixture
def client(endpoint: str) -> Kubeflow:
    return Kubeflow(load_spec("gcode", overrides=[f"kubeflow.endpoint={endpoint}"]).kubeflow)


@pytest.fixture
def unique() -> str:
    """A real server keeps what earlier tests have made."""
    return secrets.token_hex(4)


def pipeline(unique: str) -> Any:
    job = load_spec("gcode", overrides=[f"kubeflow.env.UNIQUE={unique}"])
    return compiled(Variant("gcode"), job)


def test_an_experiment_is_made_once(client: Kubeflow, unique: str) -> None:
    assert client.find_experiment(unique) is None
    made = client.experiment(unique)
    assert client.experiment(unique) == made
    assert client.find_experiment(unique) == made


def test_a_version_is_uploaded_once_for_a_content(client: Kubeflow, unique: str) -> None:
    first = client.upload(pipeline(unique))
    again = client.upload(pipeline(unique))
    assert (first.is_new, again.is_new) == (True, False)
    assert first.version_id == again.version_id
    other = client.upload(pipeline(f"other-{unique}"))
    assert other.pipeline_id == first.pipeline_id
    assert other.version_id != first.version_id


def test_a_run_is_found_by_its_name_with_what_it_was_given(client: Kubeflow, unique: str) -> None:
    version, experiment = client.upload(pipeline(unique)), client.experiment(unique)
    assert client.runs("gcode/a", experiment) == []
    made = client.create_run("gcode/a", version, experiment, {"spec": "seed: 1", "run_id": "a"})
    assert made.status in ("PENDING", "RUNNING")
    (found,) = client.runs("gcode/a", experiment)
    assert found.id == made.id
    assert dict(found.parameters) == {"spec": "seed: 1", "run_id": "a"}
    assert client.runs("gcode/b", experiment) == []
    assert client.run(made.id).name == "gcode/a"


def test_a_run_is_terminated_and_deleted(client: Kubeflow, unique: str) -> None:
    version, experiment = client.upload(pipeline(unique)), client.experiment(unique)
    made = client.create_run("gcode/a", version, experiment, {"spec": "", "run_id": "a"})
    client.terminate(made.id)
    assert client.run(made.id).state in ("CANCELING", "CANCELED")
    client.delete_run(made.id)
    assert client.runs("gcode/a", experiment) == []
    with pytest.raises(JobFailed, match="not found"):
        client.run(made.id)


@pytest.mark.parametrize("trigger", [Trigger(cron="0 0 3 * * *"), Trigger(every_s=21_600)], ids=str)
def test_a_schedule_is_made_switched_and_deleted(
    client: Kubeflow, unique: str, trigger: Trigger
) -> None:
    version, experiment = client.upload(pipeline(unique)), client.experiment(unique)
    made = client.create_schedule(
        unique,
        version,
        experiment,
        {"spec": "", "run_id": ""},
        trigger=trigger,
        description="emberline sha256 0",
        is_enabled=False,
    )
    (found,) = client.schedules(unique)
    assert (found.id, found.trigger, found.is_enabled) == (made.id, trigger, False)
    assert found.description == "emberline sha256 0"
    client.enable(made.id, on=True)
    assert client.schedules(unique)[0].is_enabled
    client.enable(made.id, on=False)
    assert not client.schedules(unique)[0].is_enabled
    assert unique in {one.name for one in client.schedules()}
    client.delete_schedule(made.id)
    assert client.schedules(unique) == []


def test_what_it_refuses_it_refuses_for_good(client: Kubeflow, unique: str) -> None:
    version, experiment = client.upload(pipeline(unique)), client.experiment(unique)
    with pytest.raises(JobFailed, match="Kubeflow Pipelines at http"):
        client.create_run("gcode/a", version, experiment, {"no such parameter": 1, "spec": ""})


# Commands as typed


@pytest.fixture
def shell(emulator: KubeflowEmulator, tmp_path: Path) -> Shell:
    return Shell(tmp_path, {"KF_PIPELINES_ENDPOINT": emulator.endpoint, "KFP_TOKEN": ""})


def submit(tmp_path: Path, *words: str) -> list[str]:
    volume = f"kubeflow.volumes.runs={tmp_path}"
    storage = str(tmp_path / "runs")
    given = ["--set", volume, "--storage", storage, "--run-id", "a", "--interval", "0.1"]
    return ["pipelines", "submit", "gcode", *given, *words]


def test_a_run_is_submitted_and_attached_to(
    emulator: KubeflowEmulator, shell: Shell, tmp_path: Path
) -> None:
    emulator.steps = {"train": "SUCCEEDED"}
    out, err = shell.call(*submit(tmp_path), "--json")
    done = json.loads(out)
    assert (done["status"], done["is_new"], done["run_id"]) == ("SUCCEEDED", True, "a")
    (step,) = done["steps"]
    assert (step["name"], step["state"]) == ("train", "SUCCEEDED")
    assert f"run a submitted: {emulator.endpoint}/#/runs/details/{done['kubeflow_run']}" in err
    again, err = shell.call(*submit(tmp_path), "--json")
    assert json.loads(again)["kubeflow_run"] == done["kubeflow_run"]
    assert "run a attached to" in err
    assert len(emulator.runs) == len(emulator.versions) == 1


def test_a_failed_step_gives_the_command_its_exit_code(
    emulator: KubeflowEmulator, shell: Shell, tmp_path: Path
) -> None:
    emulator.script, emulator.steps = ["FAILED"], {"read-logs": "FAILED"}
    out, _ = shell.call(*submit(tmp_path), "--detach", "--json")
    environ = {PIPELINE_RUN: json.loads(out)["kubeflow_run"]}
    attempt = Attempt.of(str(tmp_path / "runs"), "read_logs", {}, environ)
    assert attempt
    attempt.record(DataError("logs/7.csv: no column command"))
    out, err = shell.call(*submit(tmp_path), "--json", code=3)
    reason = "step read-logs failed: logs/7.csv: no column command"
    assert reason in err
    assert json.loads(out)["reason"].startswith(reason)


def test_an_interrupted_command_leaves_the_run(
    emulator: KubeflowEmulator, shell: Shell, tmp_path: Path
) -> None:
    emulator.script = ["RUNNING"]
    process = shell.start(*submit(tmp_path))
    deadline = time.monotonic() + 60
    while emulator.count("GET", r"/runs/[0-9a-f-]+$") < 2:
        assert time.monotonic() < deadline, process.communicate(timeout=10)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stop     emberline pipelines stop gcode --run-id a" in err
    assert [run.state for run in emulator.runs.values()] == ["RUNNING"]
    out, _ = shell.call("pipelines", "stop", "gcode", "--run-id", "a")
    assert out == "gcode/a: stopped\n"


def test_a_schedule_is_listed_and_ended(emulator: KubeflowEmulator, shell: Shell) -> None:
    words = ["pipelines", "schedule", "gcode", "--retraining", "--data", "s3://new"]
    words += ["--storage", "s3://bucket/runs", "--cron", "0 3 * * *"]
    made = json.loads(shell.call(*words, "--json")[0])
    assert made["is_new"]
    assert not json.loads(shell.call(*words, "--json", "--disable")[0])["is_enabled"]
    listed = json.loads(shell.call("pipelines", "schedules", "--json")[0])
    assert [(one["name"], one["id"]) for one in listed] == [("gcode-retraining", made["id"])]
    out, _ = shell.call("pipelines", "schedules")
    assert re.search(r"gcode-retraining +disabled +cron 0 0 3 \* \* \*", out)
    shell.call("pipelines", "unschedule", "gcode-retraining")
    assert shell.call("pipelines", "schedules")[0] == "no schedules\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["submit", "gcode"], 2, "storage './runs' is a folder of this machine"),
        (["stop", "gcode", "--run-id", "b"], 2, "has no run 'gcode/b' in the experiment 'gcode'"),
        (
            ["schedules", "--endpoint", "http://127.0.0.1:9"],
            5,
            "error: Kubeflow Pipelines at http://127.0.0.1:9 does not answer ([Errno 111] "
            "Connection refused). Once it answers, give the same command again\n",
        ),
    ],
)
def test_a_mistake_is_one_message(shell: Shell, words: list[str], code: int, message: str) -> None:
    _, err = shell.call("pipelines", *words, code=code)
    assert message in err
    assert err.startswith("error: ")


def test_one_without_a_token_is_told_how_to_give_it(
    emulator: KubeflowEmulator, shell: Shell, tmp_path: Path
) -> None:
    emulator.token = "secret-token"
    _, err = shell.call("pipelines", "schedules", code=3)
    assert "refuses the request (401: " in err
    assert "set KFP_TOKEN, or kubeflow.token_path" in err
    told = Shell(
        tmp_path, {"KF_PIPELINES_ENDPOINT": emulator.endpoint, "KFP_TOKEN": "secret-token"}
    )
    out, err = told.call("pipelines", "schedules")
    assert "secret-token" not in out + err
