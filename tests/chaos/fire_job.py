"""A small job of the fire workload, and what a test of a failing service asks of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from ray_jobs import train
from ray_jobs.errors import RetryableError
from ray_jobs.events import read_events
from ray_jobs.members import read_members
from ray_jobs.result import JobResult, Metrics
from ray_jobs.run import REPORT, Run
from ray_jobs.spec import CONFIGS
from tests.conftest import arguments
from tests.sagemaker_emulator.proxy import Call, Proxy

JOB = (
    "data.samples=2000",
    "members={logistic_regression: {}, lstm_classifier: {epochs: 2, hidden_size: 8, window: 4}}",
)
UNTRACKED = (*JOB, "tracking.enabled=false")
MEMBERS = ["logistic_regression", "lstm_classifier"]


def options(storage: str, *overrides: str) -> list[str]:
    return ["--run-id", "calm", "--storage", storage, *arguments(*overrides)]


def run_job(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )


def run_here(storage: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`python -m ray_jobs.train` in this process, with the Ray that is connected."""
    words = ["--spec", str(CONFIGS / "fire.yaml"), *options(storage, *overrides)]
    stdout, stderr, on_sigterm = StringIO(), StringIO(), signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = train.main(words)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def result_of(done: subprocess.CompletedProcess[str]) -> JobResult:
    assert done.returncode == 0, done.stderr
    return JobResult.model_validate_json(done.stdout)


def assert_to_be_retried(done: subprocess.CompletedProcess[str], reason: str) -> None:
    """It says in one line what failed, and that another attempt may not."""
    assert done.returncode == RetryableError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.search(reason, line), line
    assert "the same command with the same --run-id goes on" in line


def upon(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, moments: dict[str, int], act: Callable[[], None]
) -> dict[str, int]:
    """Act at the n-th request whose path a pattern finds, before it is answered; for each pattern.
    How many were left to come is kept in what is returned."""
    left, lock, answer = dict(moments), threading.Lock(), proxy.interception

    def interception(call: Call) -> tuple[int, bytes] | None:
        with lock:
            for pattern in [pattern for pattern in left if re.search(pattern, call.path)]:
                left[pattern] -= 1
                if left[pattern] == 0:
                    act()
        return answer(call)

    monkeypatch.setattr(proxy, "interception", interception)
    return left


def finished_members(run: Run) -> list[str]:
    return [m.name for m in read_members(run) if m.status == "SUCCEEDED"]


def num_started(run: Run, member: str) -> int:
    events = read_events(run.storage, run.folder)
    return sum(e["event"] == "member_started" and e["member"] == member for e in events)


def assert_whole(run: Run, result: JobResult, undisturbed: dict[str, Metrics]) -> None:
    assert result.status == "SUCCEEDED"
    assert result.metrics == undisturbed
    assert finished_members(run) == MEMBERS
    assert run.read_result() == result
    assert run.storage.exists(run.path(REPORT))
