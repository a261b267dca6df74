"""Runs that are cut off: nothing is left running, nothing is lost, and a resumed run is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ray_jobs.result import parse_result
from tests.conftest import SMALL_JOB, arguments, emberline, start_emberline

pytestmark = pytest.mark.slow


def wait_for(path: Path, text: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.1)


def in_group(leader: int) -> list[psutil.Process]:
    """The processes of a process group: steps that started after a look at the tree, too."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader:
                found.append(process)
    return found


def assert_all_end(processes: list[psutil.Process], timeout_s: float = 30) -> None:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, [process.cmdline() for process in alive]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_cut_off_run_leaves_nothing_running_and_resumes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    seed = 11
    delay_s = random.Random(seed + number).uniform(0, 3)
    words = ("run", "fire", "--run-id", "cut", *arguments(*SMALL_JOB))
    process = start_emberline(*words, cwd=tmp_path)
    folder = tmp_path / "runs" / "fire" / "cut"
    wait_for(folder / "events.jsonl", '"member_ended"')
    time.sleep(delay_s)
    (runner,) = psutil.Process(process.pid).children()
    started = [runner, *runner.children(recursive=True)]
    assert len(started) > 5  # Ray's own processes and a step
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert_all_end([*started, *in_group(runner.pid)])
    if number == signal.SIGINT:
        assert "nothing is left running" in stderr
        result = parse_result((folder / "result.json").read_bytes(), where="result.json")
        assert result.status == "STOPPED"
    else:
        assert not (folder / "result.json").exists()

    events = (folder / "events.jsonl").read_text()
    resumed = emberline("run", "fire", "--resume", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout)
    assert result["run_id"] == "cut"
    assert [member["status"] for member in result["members"]] == ["SUCCEEDED"] * 5
    ended = {
        event["member"]
        for event in map(json.loads, events.splitlines())
        if event["event"] == "member_ended"
    }
    later = (folder / "events.jsonl").read_text().removeprefix(events)
    for member in ended:
        assert f'"event": "member_started", "member": "{member}"' not in later
