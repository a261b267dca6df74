"""Logs: JSON lines whoever writes them, and plain text where nobody asked for them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import timeit
from pathlib import Path

import pytest

from ray_jobs import job_metrics, logs, observing, watching
from ray_jobs.container_log import member_pattern, told
from ray_jobs.errors import SpecError
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
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


# Of a run's journal


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    monkeypatch.setattr(logs, "_bound", {})


@pytest.mark.usefixtures("as_json")
def test_a_step_tells_its_own_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an ensemble's members, which are steps side by side, each tells of one."""
    run = Run.create(load_spec("fire", storage=str(tmp_path)), "r1")
    run.journal("lstm_classifier")("warning", message="of an earlier attempt")
    member = f"{run.uri}/checkpoints/lstm_classifier"
    with observing.observed_step("train_member", {"member": member}):
        run.journal("transformer")("epoch", member="transformer", epoch=1)
        run.journal("lstm_classifier")("epoch", member="lstm_classifier", epoch=1)
        logs.say("by itself")
    told = parsed(capsys.readouterr().err)
    assert [(line["step"], line["message"]) for line in told] == [
        ("train_member", "by itself"),
        ("lstm_classifier", "lstm_classifier epoch 1:"),
    ]
    assert all((line["run_id"], line["workload"]) == ("r1", "fire") for line in told)
    with observing.observed_step("evaluate_gcode", {"run": f"{run.uri}#0123456789abcdef"}):
        run.journal("evaluate")("step_started")
        run.journal("register")("step_started")
    (line,) = parsed(capsys.readouterr().err)
    assert (line["step"], line["run_id"], line["event"]) == ("evaluate", "r1", "step_started")


@pytest.mark.usefixtures("as_json")
def test_sagemaker_finds_its_metrics_in_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path)), "r1")
    with told(run):
        run.journal("lstm")("epoch", member="lstm", epoch=1, metrics={"f1": 0.5, "val_loss": 0.25})
    line = capsys.readouterr().err
    assert parsed(line)[0]["metrics"] == {"f1": 0.5, "val_loss": 0.25}
    for metric, value in (("f1", "0.5"), ("val_loss", "0.25")):
        found = re.search(member_pattern("lstm", metric), line)
        assert found is not None
        assert found[1] == value


@pytest.mark.usefixtures("as_json")
def test_a_storage_that_fails_is_told_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path)), "r1")
    lists, failures = Storage.list, iter([OSError("no network")])

    def fails_once(storage: Storage, path: str = "") -> list[str]:
        for failure in failures if threading.current_thread().name == "progress" else ():
            raise failure
        return lists(storage, path)

    monkeypatch.setattr(watching, "_INTERVAL_S", 0.05)
    monkeypatch.setattr(Storage, "list", fails_once)
    seen: list[str] = []
    with watching.watched(run, [lambda event: seen.append(event["event"])]):
        run.journal("train")("step_started")
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
    assert seen == ["step_started"]
    (line,) = parsed(capsys.readouterr().err)
    assert (line["level"], line["message"]) == (
        "warning",
        "[emberline] warning: no progress: no network",
    )


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
