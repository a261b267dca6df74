"""Training that loses its worker or its driver ends with the weights of one that lost nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.spec import CONFIGS
from tests.conftest import SMALL_WASTE, arguments, emberline, start_emberline

pytestmark = pytest.mark.slow

JOB = (*SMALL_WASTE, "train.epochs=16", "train.patience=16", "train.checkpoint.every_steps=3",
       "tracking.enabled=false")  # fmt: skip


def start(cwd: Path, run_id: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ray_jobs.train", "--spec", str(CONFIGS / "waste.yaml")]
    return subprocess.Popen(
        [*command, "--run-id", run_id, *arguments(*JOB)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(cwd: Path, run_id: str) -> str:
    path = cwd / "runs/waste" / run_id / "checkpoints/model/trained/weights.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def events(cwd: Path, run_id: str) -> list[dict]:
    path = cwd / "runs/waste" / run_id / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_epoch(cwd: Path, run_id: str, epoch: int, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(e["event"] == "epoch" and e["epoch"] >= epoch for e in events(cwd, run_id)):
        assert time.monotonic() < deadline, f"epoch {epoch} was not reached"
        time.sleep(0.05)


def training_worker(driver: int, run_id: str) -> psutil.Process:
    """The process of the driver's family in which the training function runs."""
    for process in psutil.Process(driver).children(recursive=True):
        if " ".join(process.cmdline()).startswith(f"ray::{run_id}-"):
            return process
    raise AssertionError("no training worker is running")


def finish(process: subprocess.Popen[str]) -> dict:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return json.loads(stdout[stdout.rindex("\n{\n") :] if "\n{\n" in stdout else stdout)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = finish(start(cwd, "calm"))
    return weights(cwd, "calm"), result["metrics"]


def test_a_killed_worker_is_restarted_and_goes_on(
    tmp_path: Path, undisturbed: tuple[str, dict]
) -> None:
    rng = random.Random(3)
    process = start(tmp_path, "worker")
    for epoch in (2, 9):
        wait_for_epoch(tmp_path, "worker", epoch)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(training_worker(process.pid, "worker").pid, signal.SIGKILL)
    result = finish(process)
    resumed = [event for event in events(tmp_path, "worker") if event["event"] == "resumed"]
    assert len(resumed) == 2
    assert weights(tmp_path, "worker") == undisturbed[0]
    assert result["metrics"] == undisturbed[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_driver_is_taken_up_by_its_run_id(
    tmp_path: Path, undisturbed: tuple[str, dict], number: signal.Signals
) -> None:
    rng = random.Random(int(number))
    process = start(tmp_path, "driver")
    wait_for_epoch(tmp_path, "driver", rng.randint(2, 8))
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "a checkpoint is written" in stderr
        stored = json.loads((tmp_path / "runs/waste/driver/result.json").read_text())
        assert stored["status"] == "STOPPED"
    psutil.wait_procs(family, timeout=30)
    result = finish(start(tmp_path, "driver"))
    assert any(event["event"] == "resumed" for event in events(tmp_path, "driver"))
    assert weights(tmp_path, "driver") == undisturbed[0]
    assert result["metrics"] == undisturbed[1]


def test_an_interrupted_pipeline_stops_with_a_checkpoint_and_leaves_nothing_running(
    tmp_path: Path, undisturbed: tuple[str, dict]
) -> None:
    words = ("run", "waste", "--run-id", "cut", *arguments(*JOB))
    process = start_emberline(*words, cwd=tmp_path)
    wait_for_epoch(tmp_path, "cut", 3)
    (runner,) = psutil.Process(process.pid).children()
    started = [runner, *runner.children(recursive=True)]
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "nothing is left running" in stderr
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    told = events(tmp_path, "cut")
    assert any(event["event"] == "checkpoint" for event in told)
    (ended,) = (e for e in told if e["event"] == "step_ended" and e["step"] == "train")
    assert "a checkpoint is written" in ended["failure"]
    assert ended["exit_code"] == 130
    resumed = emberline("run", "waste", "--resume", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert any(event["event"] == "resumed" for event in events(tmp_path, "cut"))
    assert weights(tmp_path, "cut") == undisturbed[0]
