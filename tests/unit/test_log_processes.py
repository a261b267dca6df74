"""Each line of the project's own processes is an object of a log, whoever writes it in them."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components import gate
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.webhooks.signature import SECRET_VARIABLE
from tests.kubernetes_emulator import NAMESPACE, cluster
from tests.log_lines import environment, parsed
from tests.unit.serving_models import WAIT_S, fire_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

_JOB = (
    "data.samples=1500",
    "members=[logistic_regression, lstm_classifier]",
    "members.lstm_classifier.epochs=2",
)


def _python(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=380,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("logs")
    (home / "fire.yaml").write_text(load_spec("fire", overrides=_JOB).to_yaml())
    return home


@pytest.fixture(scope="module")
def trained(home: Path) -> subprocess.CompletedProcess[str]:
    return _python("ray_jobs.train", "--spec", "fire.yaml", "--run-id", "r1", cwd=home)


def test_a_job(home: Path, trained: subprocess.CompletedProcess[str]) -> None:
    assert trained.returncode == 0, trained.stderr
    lines = parsed(trained.stderr)
    assert {(line["run_id"], line["workload"]) for line in lines} == {("r1", "fire")}
    steps = [line["step"] for line in lines if line["event"] == "step_ended"]
    assert steps == ["prepare", "ensemble", "evaluate", "register"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["member"], line["epoch"]) for line in epochs] == [
        ("lstm_classifier", 1),
        ("lstm_classifier", 2),
    ]
    assert all(line["metrics"]["val_loss"] > 0 for line in epochs)
    assert epochs[0]["message"].startswith("lstm_classifier epoch 1/2: val_loss=")
    last = lines[-1]
    assert (last["event"], last["status"]) == ("run_ended", "SUCCEEDED")
    (outcome,) = trained.stdout.splitlines()
    stored = (home / "runs" / "fire" / "r1" / "result.json").read_bytes()
    assert json.loads(outcome) == json.loads(stored)


def test_the_command_line(home: Path, trained: subprocess.CompletedProcess[str]) -> None:
    words = ("run", "fire", "--config", "fire.yaml", "--run-id", "r1", "--json")
    done = _python("pipelines.cli", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    (line,) = parsed(done.stderr)
    assert line["message"] == "run r1 is done; this is its result"
    assert json.loads(done.stdout) == json.loads(trained.stdout)


def test_a_server(home: Path, tmp_path: Path) -> None:
    command = ("ray_jobs.serve", "--port", "0", "--drain-s", "0", "--model", str(fire_folder()))
    first, rest, code = _until_sigterm(command, home, "serving", ask="/invocations")
    assert first["message"].startswith(f"serving {fire_folder()} on http://127.0.0.1:")
    assert (rest, code) == ([], 0)
    altered = tmp_path / "model"
    shutil.copytree(fire_folder(), altered)
    (altered / "bundle.json").write_text("{}")
    done = _python(*command[:-1], str(altered), cwd=home)
    lines = parsed(done.stderr)
    assert done.returncode == 4
    assert (lines[-1]["event"], lines[-1]["level"], lines[-1]["exit_code"]) == ("error", "error", 4)


def test_the_receiver_of_webhooks(home: Path, trained: subprocess.CompletedProcess[str]) -> None:
    command = ("ray_jobs.webhook", "--model", "fire", "--port", "0")
    secret = "known to both of them"
    first, rest, code = _until_sigterm(
        command, home, "message", ask="/webhook", **{SECRET_VARIABLE: secret}
    )
    assert first["message"].startswith("receiving webhooks for fire at http://127.0.0.1:")
    assert code == 0
    assert not any(secret in str(line) for line in rest)


def test_a_step_of_a_pipeline(tmp_path: Path) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path / "runs")), "r1")
    inputs = {"run": run.uri, "outcome": "refused", "reasons": "f1 fell"}
    given = {
        "inputs": {"parameterValues": inputs},
        "outputs": {"outputFile": str(tmp_path / "outputs.json")},
    }
    words = (
        "components.step", "kfp.dsl.executor_main", "--component_module_path",
        str(Path(gate.__file__)), "--executor_input", json.dumps(given),
        "--function_to_execute", "gate",
    )  # fmt: skip
    done = _python(*words, cwd=tmp_path)
    (line,) = parsed(done.stderr)
    assert done.returncode == 6
    assert (line["run_id"], line["step"], line["event"]) == ("r1", "gate", "crash")
    assert line["message"] == "GateRefused: f1 fell"
    assert done.stdout == ""


def test_the_reaper(tmp_path: Path) -> None:
    with cluster(tmp_path) as kubernetes:
        owner = {"emberline/owner-namespace": NAMESPACE, "emberline/owner-pod": "gone"}
        kubernetes.put(
            "rayjobs",
            "left",
            {"metadata": {"labels": {"emberline/owned": "true"}, "annotations": owner}},
        )
        words = ("ray_jobs.reap", "--json", "--grace", "0")
        done = _python(*words, cwd=tmp_path, KUBECONFIG=str(kubernetes.kubeconfig()))
    assert done.returncode == 0, done.stderr
    (line,) = parsed(done.stderr)
    assert (line["event"], line["what"], line["name"]) == ("reap", "stopped", "left")
    (outcome,) = done.stdout.splitlines()
    assert [each["name"] for each in json.loads(outcome)["stopped"]] == ["left"]


def _until_sigterm(
    command: Sequence[str], cwd: Path, event: str, *, ask: str, **variables: str
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """What a server says first, and after a request that it refuses, and its exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=cwd, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            (first,) = parsed(said)
            assert first["event"] == event
            port = int(first["message"].rsplit(":", 1)[1].partition("/")[0])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
            connection.request("POST", ask, "nothing", {"content-type": "text/csv"})
            assert connection.getresponse().status in (401, 422, 503)
            connection.close()
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=WAIT_S)
            return first, parsed(rest), process.returncode
        finally:
            process.kill()
