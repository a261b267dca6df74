"""Logs: JSON lines whoever writes them, and plain text where nobody asked for them."""

from __future__ import annotations

import json
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

from ray_jobs import job_metrics, logs, observing
from ray_jobs.errors import SpecError
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from tests.log_lines import environment, parsed

_WRITES = """
import logging, sys, threading, warnings
from ray_jobs import logs
logs.setup()
logs.bind(run_id="r1", workload="fire")
logs.say("it begins", event="begins", seconds=1.5)
print("two\\nlines, é")
sys.stderr.write("a bar 1/2\\ra bar 2/2\\r")
sys.stderr.write("in ")
sys.stderr.write("parts\\n")
logging.getLogger("lib").warning("of %s", "a library")
logging.getLogger("lib").info("not told")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("lib").exception("caught")
warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
thread = threading.Thread(target=lambda: [][1])
thread.start()
thread.join()
logs.tell({"time": "2026-01-01T00:00:00.000+00:00", "step": "train", "event": "skipped",
           "member": "lstm", "ids": list(range(100)), "run_id": "other"})
logs.tell({"time": "2026-01-01T00:00:01.000+00:00", "step": "train", "event": "step_ended",
           "failure": "no rows"})
sys.stdout.write("without an end")
logs.show('{\\n  "status": "SUCCEEDED"\\n}')
raise ValueError("the end\\nof it")
"""


def _run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=environment(**variables), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def said() -> list[dict]:
    done = _run(_WRITES)
    assert done.returncode == 1
    shown = [line for line in done.stdout.splitlines() if '"status"' in line]
    assert shown == ['{"status": "SUCCEEDED"}'], "an outcome is one line, as it is"
    rest = done.stdout.replace(f"{shown[0]}\n", "")
    return parsed(done.stderr + rest)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("it begins", {"event": "begins", "seconds": 1.5, "level": "info"}),
        ("two", {"event": "output"}),
        ("lines, é", {"event": "output"}),
        ("a bar 1/2", {"event": "output"}),
        ("a bar 2/2", {"event": "output"}),
        ("in parts", {"event": "output"}),
        ("without an end", {"event": "output"}),
        ("of a library", {"event": "log", "logger": "lib", "level": "warning"}),
        ("caught", {"event": "log", "logger": "lib", "level": "error"}),
        ("IndexError: list index out of range", {"event": "crash", "level": "error"}),
        ("skipped", {"step": "train", "member": "lstm", "num_ids": 100, "run_id": "other"}),
        ("no rows", {"event": "step_ended", "level": "error"}),
        ("ValueError: the end\nof it", {"event": "crash", "level": "error"}),
    ],
)
def test_each_is_a_line(said: list[dict], message: str, fields: dict) -> None:
    (line,) = [line for line in said if line["message"] == message]
    assert {"run_id": "r1", "workload": "fire", **fields}.items() <= line.items()


def test_warnings_and_tracebacks_are_whole(said: list[dict]) -> None:
    (warned,) = [line for line in said if line.get("logger") == "py.warnings"]
    assert "soon gone" in warned["message"]
    traces = [line["traceback"] for line in said if "traceback" in line]
    assert len(traces) == 3
    assert all(trace.startswith("Traceback (most recent call last):\n") for trace in traces)
    assert not any(line["message"] == "not told" for line in said)


def test_ids_of_an_event_are_counted_not_listed(said: list[dict]) -> None:
    assert not any("ids" in line for line in said)


def test_text_is_as_it_was() -> None:
    done = _run(_WRITES.partition("logging.getLogger")[0], EMBERLINE_LOG_FORMAT="text")
    assert done.stdout == "two\nlines, é\n"
    assert done.stderr == "it begins\na bar 1/2\na bar 2/2\nin parts\n"  # newlines are translated


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "yaml")
    with pytest.raises(SpecError) as refused:
        logs.setup()
    assert str(refused.value) == "EMBERLINE_LOG_FORMAT=yaml: set it to json or text"


def test_a_wrong_description_is_a_line_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.train", "--spec", "nowhere.yaml"],
        env=environment(), capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    (line,) = parsed(done.stderr)
    assert (done.returncode, line["event"], line["exit_code"]) == (2, "error", 2)
    assert "nowhere.yaml" in line["message"]


# What it costs


def test_a_job_that_nobody_asks_about_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread, no look at the storage, no Ray: some microseconds once a job."""
    monkeypatch.delenv(logs.FORMAT, raising=False)
    monkeypatch.setenv(job_metrics.VARIABLE, "ray")  # without a cluster there is nobody to tell
    run = Run(load_spec("fire", storage=str(tmp_path / "unread")), "r1")
    monkeypatch.setattr(observing.logs, "_bound", {})

    def observe() -> None:
        with observing.observed(run):
            pass

    assert min(timeit.repeat(observe, number=100, repeat=5)) / 100 < 0.001
    assert not (tmp_path / "unread").exists()


def test_an_outcome_is_the_same_in_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = json.dumps({"a": [1, 2], "é": None}, indent=2)
    for value in ("text", "json"):
        monkeypatch.setenv(logs.FORMAT, value)
        logs.show(outcome)
        assert json.loads(capsys.readouterr().out) == json.loads(outcome)
