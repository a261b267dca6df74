"""Observing a job: what this process tells of the run that it carries out, as lines for a log and
as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ray_jobs import job_metrics, logs
from ray_jobs.container_log import tell
from ray_jobs.errors import Stopped
from ray_jobs.run import Run
from ray_jobs.watching import Take, watched


@contextmanager
def observed(run: Run) -> Iterator[None]:
    """Tell of the run as far as the environment asks for it: EMBERLINE_LOG_FORMAT=json the events
    of its journal on stderr, EMBERLINE_METRICS=ray its metrics. Without either nothing is done."""
    logs.bind(run_id=run.run_id, workload=run.spec.workload)
    takers: list[Take] = [tell] if logs.is_json() else []
    metrics = None
    with ExitStack() as stack:
        if job_metrics.is_on():
            from ray_jobs import ray_runtime

            stack.enter_context(ray_runtime.session(run.spec.resources))
            metrics = job_metrics.JobMetrics(run.spec.workload, run.run_id)
            takers.append(metrics.take)
        status = "FAILED"
        try:
            with watched(run, takers):
                yield
            status = "SUCCEEDED"
        except (KeyboardInterrupt, Stopped):
            status = "STOPPED"
            raise
        finally:
            if metrics:
                metrics.end(status)
            if logs.is_json():
                level = "error" if status == "FAILED" else "info"
                message = f"the run ended as {status}"
                logs.say(message, level=level, event="run_ended", status=status)
