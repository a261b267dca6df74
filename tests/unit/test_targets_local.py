from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from ray_jobs.errors import RetryableError, SpecError
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets import connect
from ray_jobs.targets.base import JobState
from ray_jobs.targets.local import LocalTarget

# Stand-ins for a job, which take what a job takes and are there at once.
IDLE = "import time; time.sleep(60)"
DEAF = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\n"
    "time.sleep(60)\n"
)
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)
HOLDER = (
    "import fcntl, sys, time\n"
    "file = open(sys.argv[1], 'w')\n"
    "fcntl.flock(file, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "try:\n"
    "    time.sleep(60)\n"
    "except KeyboardInterrupt:\n"
    "    print('interrupted')\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(load_spec("fire", storage=str(tmp_path)), "night")


@pytest.fixture
def target(run: Run) -> LocalTarget:
    return LocalTarget(run.spec.storage, notice_s=5)


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed its first line, if it prints any."""
    child = subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def record(run: Run, pid: int, *, log: str = "", **changes: object) -> None:
    """Leave what a submission leaves."""
    folder = run.storage.local(run.folder)
    created = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
    found = {
        "host": socket.gethostname(),
        "pid": pid,
        "created": created,
        "submitted_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "log_offset": 0,
        **changes,
    }
    (folder / "process.json").write_text(json.dumps(found))
    (folder / "job.log").write_text(log)


def state(target: LocalTarget, run: Run) -> JobState:
    return target.status(target.handle(run))


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_run_that_nobody_submitted_is_pending(target: LocalTarget, run: Run) -> None:
    assert state(target, run) == JobState(
        "PENDING", "it has not been submitted", is_submitted=False
    )
    assert list(target.logs(target.handle(run))) == []
    target.stop(target.handle(run))  # nothing to stop, and nothing asked of a later submission
    assert not run.is_stop_requested()


def test_a_job_is_pending_until_its_first_event(target: LocalTarget, run: Run) -> None:
    run.journal("prepare")("step_started")  # of an earlier attempt
    time.sleep(0.02)
    with process(IDLE) as child:
        record(run, child.pid)
        assert state(target, run).status == "PENDING"
        run.journal("prepare")("step_started")
        found = state(target, run)
    assert found.status == "RUNNING"
    assert found.details == {"pid": str(child.pid)}


def test_a_recycled_pid_is_not_taken_for_the_job(target: LocalTarget, run: Run) -> None:
    created = psutil.Process().create_time() - 100
    record(run, os.getpid(), created=created)
    found = state(target, run)
    assert found.status == "FAILED"
    assert found.may_be_retried
    assert found.reason == (
        "its process ended without a result: it was killed, or the machine ran out of memory; "
        "submit it again to go on where it ended"
    )
    target.stop(target.handle(run))  # this process is still here


def test_a_pid_of_another_machine_is_not_looked_up(target: LocalTarget, run: Run) -> None:
    record(run, os.getpid(), host="elsewhere")
    assert state(target, run).status == "FAILED"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("error: night.yaml: seed: unknown key\n", "night.yaml: seed: unknown key"),
        ("Traceback (most recent call last):\n  x\nValueError: no rows\n", "no rows"),
        ("a.b.SomeError: first\nlib.LastError: last\nbye\n", "last"),
    ],
)
def test_the_reason_without_a_result_is_the_logs_last_error(
    target: LocalTarget, run: Run, log: str, reason: str
) -> None:
    record(run, dead_pid(), log="error: of an earlier attempt\n" + log, log_offset=29)
    assert state(target, run) == JobState("FAILED", reason)


@pytest.mark.parametrize(("code", "may_be_retried"), [(4, False), (5, True)])
def test_a_failed_step_says_whether_a_retry_may_help(
    target: LocalTarget, run: Run, code: int, may_be_retried: bool
) -> None:
    from ray_jobs.lifecycle import carry_out

    def work() -> None:
        with run.journal("train").phase():
            error = SpecError("no")
            error.exit_code = code
            raise error

    with pytest.raises(SpecError):
        carry_out(run, work)
    found = state(target, run)
    assert (found.status, found.reason, found.may_be_retried) == ("FAILED", "no", may_be_retried)


def test_a_run_of_another_command_is_seen_and_stopped(target: LocalTarget, run: Run) -> None:
    with process(HOLDER, str(run.storage.local(run.path(".lock")))) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert state(target, run) == JobState("RUNNING", secondary="another command")
        target.submit(run)  # attaches
        assert not (run.storage.local(run.folder) / "process.json").exists()
        target.stop(target.handle(run))
        assert child.stdout.read() == "interrupted\n"  # as by a Ctrl-C
    assert state(target, run).status == "STOPPED"


def test_two_that_look_are_not_taken_for_the_holder(target: LocalTarget, run: Run) -> None:
    lock = run.storage.local(run.path(".lock"))
    lock.touch()
    with lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert state(target, run).status == "FAILED"  # it was at work, and is not


def stopped(target: LocalTarget, run: Run, pid: int) -> Callable[[], JobState]:
    record(run, pid)
    target.stop(target.handle(run))
    return lambda: state(target, run)


def test_a_job_that_does_not_listen_is_killed(run: Run) -> None:
    target = LocalTarget(run.spec.storage, notice_s=0.3)
    with process(DEAF) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = stopped(target, run, child.pid)()
        assert child.wait(5) == -signal.SIGKILL
    reason = "it was stopped before it had written a result"
    assert found == JobState("STOPPED", reason)


def test_what_a_job_has_started_ends_with_it(
    target: LocalTarget, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.targets.local._LEFTOVER_S", 0.3)
    with process(PARENT) as child:
        assert child.stdout is not None
        grandchild = psutil.Process(int(child.stdout.readline()))
        assert stopped(target, run, child.pid)().status == "STOPPED"
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_the_log_of_a_pipeline_is_shown(target: LocalTarget, run: Run) -> None:
    run.storage.write_text(run.path("artifacts/pipeline.log"), "one\ntwo\n")
    for follow in (False, True):
        assert list(target.logs(target.handle(run), follow=follow)) == ["one", "two"]


def test_a_storage_that_does_not_answer_may_be_asked_again(
    target: LocalTarget, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("AWS Error SLOW_DOWN during HeadObject operation")

    monkeypatch.setattr("ray_jobs.storage.Storage.exists", fail)
    message = re.escape(f"storage {run.storage.uri!r} does not answer (SLOW_DOWN); try again")
    with pytest.raises(RetryableError, match=message):
        state(target, run)


def test_a_log_is_followed_to_its_end(target: LocalTarget, run: Run) -> None:
    path = run.storage.local(run.folder) / "job.log"
    with process(IDLE) as child:
        record(run, child.pid, log="one\ntw")
        lines = target.logs(target.handle(run), follow=True)
        assert next(lines) == "one"
        with path.open("a") as log:
            log.write("o\nend")
        assert next(lines) == "two"
        child.kill()
        assert list(lines) == ["end"]


def test_a_run_on_an_object_store_has_its_log_on_this_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    spec = load_spec("fire", overrides=["data.path=no.csv"], storage=f"s3://{bucket}/root")
    run = Run.create(spec, "far")
    target = connect("local", spec)
    assert isinstance(target, LocalTarget)
    handle = target.submit(run)
    assert "no.csv" in "".join(target.logs(handle, follow=True))  # read to its end
    found = target.status(handle)
    assert (found.status, found.may_be_retried) == ("FAILED", False)
    assert found.reason is not None
    assert "no.csv" in found.reason
    assert target.list() == [handle]


def test_a_target_is_found_by_name(run: Run) -> None:
    with pytest.raises(SpecError, match="no target 'cloud'; there is local, ray"):
        connect("cloud", run.spec)
