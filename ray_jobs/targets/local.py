"""This machine as a target: a job is a process of its own, which goes on when this one ends.

`process.json` and the log lie in the run's folder; if that is on an object store, in a folder of
this user. A run that another command carries out here (`emberline run`) is found by its claim.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from ray_jobs import workloads
from ray_jobs.checks import Checklist, check_packages, check_storage
from ray_jobs.errors import RetryableError, SpecError
from ray_jobs.run import SPEC, Run
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage
from ray_jobs.targets.base import Handle, JobState, Target, last_error, stored_events, stored_state

_LOG = "job.log"
_PIPELINE_LOG = "artifacts/pipeline.log"  # of a run of the pipeline, once it has ended
_PROCESS = "process.json"
_NOTICE_S = 30.0  # for a checkpoint to be written before the job is killed
_LEFTOVER_S = 5.0  # for Ray's own processes to follow the job's
_POLL_INTERVAL_S = 0.2
_CLOCK_TOLERANCE_S = 2.0  # the time of the machine's start, which all others count from, may shift


def connect(spec: JobSpec) -> LocalTarget:
    return LocalTarget(spec.storage)


class LocalTarget(Target):
    """Runs under one storage root, carried out by processes of this machine."""

    name = "local"

    def __init__(self, storage: str, *, notice_s: float = _NOTICE_S):
        self._storage = Storage(storage)
        self._notice_s = notice_s
        self._children: list[subprocess.Popen[bytes]] = []

    def check(self, spec: Any, *, seconds: float | None = None) -> Checklist:
        checklist = Checklist()
        checklist.add(check_packages())
        checklist.add(check_storage(spec.storage))
        return checklist

    def handle(self, run: Run) -> Handle:
        return Handle(self.name, run.spec.workload, run.run_id, run.storage.uri, run.folder)

    def submit(self, run: Run) -> Handle:
        folder = _folder(run)
        with _alone(folder / ".submit.lock"):
            state = self._look(run)
            if state.status != "SUCCEEDED" and not _is_at_work(state, run):
                self._start(run, folder)
        return self.handle(run)

    def status(self, handle: Handle) -> JobState:
        return self._look(handle.open())

    def logs(self, handle: Handle, *, follow: bool = False) -> Iterator[str]:
        run = handle.open()
        path = _folder(run) / _LOG
        while follow and not path.exists() and _is_at_work(self._look(run), run):
            time.sleep(_POLL_INTERVAL_S)  # a pipeline leaves its log when it ends
        if not follow or not path.exists():
            yield from _lines(run, path)
            return
        rest = ""
        with path.open(encoding="utf-8", errors="replace") as file:
            while True:
                has_ended = self._look(run).has_ended  # before what it wrote last is read
                *lines, rest = (rest + file.read()).split("\n")
                yield from lines
                if has_ended:
                    break
                time.sleep(_POLL_INTERVAL_S)
        if rest:
            yield rest

    def stop(self, handle: Handle) -> None:
        run = handle.open()
        submitted = _submitted(run)
        process = submitted or _holder(run)
        if process is None:
            if _is_claimed(run):
                raise SpecError(
                    f"run {run.run_id!r} is carried out by another user or another machine; stop "
                    "it where it was started"
                )
            return
        run.request_stop()
        family = {process, *_family(process)}
        # What a terminal's Ctrl-C sends, to a command that was started at one.
        process.send_signal(signal.SIGTERM if submitted else signal.SIGINT)
        deadline = time.monotonic() + self._notice_s
        while _is_alive(process) and time.monotonic() < deadline:
            family |= set(_family(process))
            run.request_stop()  # again, for a job that was just beginning has cleared it
            time.sleep(_POLL_INTERVAL_S)
        if _is_alive(process):
            process.kill()
        alive = _still_alive(family)
        for left in alive:
            left.kill()
        alive = _still_alive(alive)
        if alive:
            pids = ", ".join(str(left.pid) for left in alive)
            raise RetryableError(
                f"run {run.run_id!r}: its processes {pids} do not end; look whether they wait for "
                "a disk or a network share, and stop the run again"
            )

    def list(self) -> list[Handle]:
        handles = []
        for workload in workloads.NAMES:
            for folder in self._storage.list(workload):
                if not self._storage.exists(f"{folder}/{SPEC}"):
                    continue
                try:
                    run = Run.at(f"{self._storage.uri}/{folder}")
                except SpecError:  # a run of an older version, which is not carried out any more
                    continue
                if run.spec.target == self.name:
                    handles.append(self.handle(run))
        return sorted(handles, key=lambda handle: handle.run_id)

    def _start(self, run: Run, folder: Path) -> None:
        spec = folder / SPEC
        if not run.storage.is_local:
            spec.write_text(run.spec.to_yaml(), encoding="utf-8")
        command = [
            sys.executable, "-m", "ray_jobs.sweep" if run.spec.sweeps else "ray_jobs.train",
            "--spec", str(spec), "--run-id", run.run_id, "--storage", run.storage.uri,
        ]  # fmt: skip
        with (folder / _LOG).open("ab") as log:
            offset, submitted_at = log.tell(), datetime.now(UTC)
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a Ctrl-C here does not reach it
            )
        self._children.append(child)
        record = {
            "host": socket.gethostname(),
            "pid": child.pid,
            "created": psutil.Process(child.pid).create_time(),
            "submitted_at": submitted_at.isoformat(timespec="milliseconds"),
            "log_offset": offset,
        }
        (folder / _PROCESS).write_text(json.dumps(record), encoding="utf-8")

    def _look(self, run: Run) -> JobState:
        for child in self._children:  # else a process that has ended stays in the table
            child.poll()
        process = _submitted(run)
        is_claimed = _is_claimed(run)
        stored = stored_state(run)  # after the look at the process, which writes it before it ends
        if stored is not None and stored.status == "SUCCEEDED":
            return stored
        if process is not None:
            return _running(run, process)
        if is_claimed:
            return JobState("RUNNING", secondary="another command")
        if stored is not None:
            return replace(stored, may_be_retried=_may_be_retried(run))
        if run.is_stop_requested():
            return JobState("STOPPED", "it was stopped before it had written a result")
        return _without_result(run)


def _running(run: Run, process: psutil.Process) -> JobState:
    record = _read_record(run)
    assert record is not None, "it is how the process was found"
    started = datetime.fromisoformat(record["submitted_at"])
    events = stored_events(run)
    has_begun = bool(events) and datetime.fromisoformat(events[-1]["time"]) >= started
    details = {"pid": str(process.pid)}
    return JobState("RUNNING" if has_begun else "PENDING", started_at=started, details=details)


def _is_at_work(state: JobState, run: Run) -> bool:
    """A run that nobody has submitted is PENDING too."""
    return state.status == "RUNNING" or _submitted(run) is not None


def _may_be_retried(run: Run) -> bool:
    """Whether the step that failed says so by its exit code."""
    codes = [
        event["exit_code"]
        for event in stored_events(run)
        if event["event"] == "step_ended" and "failure" in event
    ]
    return bool(codes) and codes[-1] == RetryableError.exit_code


def _without_result(run: Run) -> JobState:
    """The state of a run that no process is at, and that has no result."""
    record = _read_record(run)
    if record is None and not _has_been_claimed(run):
        return JobState("PENDING", "it has not been submitted", is_submitted=False)
    path = _folder(run) / _LOG
    log = ""
    if record is not None and path.exists():
        log = path.read_bytes()[record["log_offset"] :].decode("utf-8", errors="replace")
    reason = last_error(log)
    if reason is not None:
        return JobState("FAILED", reason)
    return JobState(
        "FAILED",
        "its process ended without a result: it was killed, or the machine ran out of memory; "
        "submit it again to go on where it ended",
        may_be_retried=True,
    )


def _lines(run: Run, path: Path) -> list[str]:
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    if run.storage.exists(run.path(_PIPELINE_LOG)):
        return run.storage.read_text(run.path(_PIPELINE_LOG)).splitlines()
    return []


# Processes


def _folder(run: Run) -> Path:
    """Where the record of the run's process and its log lie."""
    if run.storage.is_local:
        return run.storage.local(run.folder)
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    root = hashlib.sha256(run.storage.uri.encode()).hexdigest()[:12]
    folder = home / "emberline" / root / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_record(run: Run) -> dict[str, Any] | None:
    path = _folder(run) / _PROCESS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _submitted(run: Run) -> psutil.Process | None:
    """The process that was started for the run, if it is alive and on this machine."""
    record = _read_record(run)
    if record is None or record["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(record["pid"])
        # Another process may have been given the same number since.
        is_same = abs(process.create_time() - record["created"]) < _CLOCK_TOLERANCE_S
    except psutil.NoSuchProcess:
        return None
    return process if is_same and _is_alive(process) else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _still_alive(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended after a while. An orphan may stay in the table for ever where no
    init collects it: it has ended, too."""
    deadline = time.monotonic() + _LEFTOVER_S
    while True:
        alive = [process for process in processes if _is_alive(process)]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(_POLL_INTERVAL_S)


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    """What the process has started, and what these have."""
    try:
        yield from process.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def _has_been_claimed(run: Run) -> bool:
    return run.storage.is_local and run.storage.local(run.path(".lock")).exists()


def _is_claimed(run: Run) -> bool:
    """Whether a process holds the run. An object store cannot tell."""
    if not _has_been_claimed(run):
        return False
    with run.storage.local(run.path(".lock")).open() as file:
        try:
            # Shared, so that two that look do not take each other for the holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(run: Run) -> psutil.Process | None:
    """The process that holds the run, if this user may see it."""
    if not _is_claimed(run):
        return None
    lock = str(run.storage.local(run.path(".lock")).resolve())
    for process in psutil.process_iter():
        try:
            if any(file.path == lock for file in process.open_files()):
                return process
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other process of this machine submit the same run meanwhile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
