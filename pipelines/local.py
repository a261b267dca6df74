"""The local runner: a pipeline's steps as processes of this machine, with a private Ray for the
fits.

`run()` starts `python -m pipelines.local RUN_URI` as a child and follows it. The child carries
everything heavy (KFP, Ray) and all their output; it lives no longer than its parent.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from ray_jobs import logs
from ray_jobs.lifecycle import failure_of
from ray_jobs.run import RESULT, Run

LOG = "artifacts/pipeline.log"
_STOP_TIMEOUT_S = 10.0
_NOTICE_S = 30.0  # for a checkpoint to be written after an interrupt; a second one ends it at once

_POLL_INTERVAL_S = 0.2


def run(run: Run, on_poll: Callable[[], None]) -> None:
    """Run the workload's pipeline; returns when it has ended well.

    Args:
        on_poll: called several times a second, for a progress display.

    Raises:
        EmberlineError: a step failed; carries its reason and exit code.
    """
    with TemporaryDirectory(prefix="emberline-") as scratch:
        log = Path(scratch) / "pipeline.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "pipelines.local", run.uri],
                env={**os.environ, logs.FORMAT: "text"},  # of a file that `failure_of` reads
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _follow(child, on_poll)
            except KeyboardInterrupt:
                if run.workload.stops_when_asked:
                    run.request_stop()
                    _follow(child, on_poll, timeout_s=_NOTICE_S)
                raise
            finally:
                _stop(child)
                run.storage.write_bytes(run.path(LOG), log.read_bytes())
    if child.returncode != 0 or not run.storage.exists(run.path(RESULT)):
        raise failure_of(run, LOG)


def _follow(
    child: subprocess.Popen[bytes], on_poll: Callable[[], None], timeout_s: float = math.inf
) -> None:
    """Wait for the child to end, or for the time to be over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            child.wait(_POLL_INTERVAL_S)
            break
        except subprocess.TimeoutExpired:
            on_poll()
    on_poll()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and all of its processes: they are one process group."""
    if child.stdin:
        child.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def main(run_uri: str) -> None:
    """Run the pipeline of a run in this process, the leader of a process group."""
    orphaned = threading.Event()
    threading.Thread(target=_watch_parent, args=(orphaned,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _run_pipeline(Run.at(run_uri))
    finally:
        if orphaned.is_set():  # nobody else will end a step that outlives SIGTERM
            os.killpg(0, signal.SIGKILL)


def _watch_parent(orphaned: threading.Event) -> None:
    """End this process group when the parent's end of the pipe on stdin closes."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_STOP_TIMEOUT_S)
    os.killpg(0, signal.SIGKILL)


def _run_pipeline(run: Run) -> None:
    from ray_jobs import ray_runtime

    with ray_runtime.session(run.spec.resources):
        import ray
        from kfp import local

        pipeline = import_module(f"pipelines.{run.spec.workload}").pipeline(run.spec)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # for the steps
        # The runner warns that a step's image is not used; that is what it is for.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
        with TemporaryDirectory(prefix="emberline-kfp-") as root:
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
            pipeline(spec=run.spec.to_yaml(), run_id=run.run_id)


if __name__ == "__main__":
    main(sys.argv[1])
