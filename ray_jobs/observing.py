"""Observing a job: what this process tells of the run that it carries out, as lines for a log and
as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ray_jobs import job_metrics, logs
from ray_jobs.container_log import tell
from ray_jobs.errors import Stopped
from ray_jobs.run import Run
from ray_jobs.watching import Take, watched


@contextmanager
def observed(run: Run, steps: Collection[str] = ()) -> Iterator[None]:
    """Tell of the run as far as the environment asks for it: EMBERLINE_LOG_FORMAT=json the events
    of its journal on stderr, EMBERLINE_METRICS=ray its metrics. Without either nothing is done.

    Args:
        steps: that this process carries out; none: the whole run, whose end is then told, too.
    """
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
            with watched(run, takers, steps):
                yield
            status = "SUCCEEDED"
        except (KeyboardInterrupt, Stopped):
            status = "STOPPED"
            raise
        finally:
            if metrics:
                metrics.end(None if steps else status)
            if logs.is_json() and not steps:
                level = "error" if status == "FAILED" else "info"
                message = f"the run ended as {status}"
                logs.say(message, level=level, event="run_ended", status=status)


@contextmanager
def observed_step(name: str, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Tell of a pipeline's step, in its container, where lines are JSON objects.

    Args:
        name: of its function.
        inputs: its parameters, which name the run or the member.
    """
    logs.bind(step=name, **({"run_id": inputs["run_id"]} if "run_id" in inputs else {}))
    place, step = inputs.get("run"), name.partition("_")[0]  # evaluate_gcode is the step evaluate
    if "member" in inputs:
        place, _, step = str(inputs["member"]).rsplit("/", 2)
    if not logs.is_json() or not place:
        yield
        return
    run = Run.at(place)
    logs.bind(run_id=run.run_id, workload=run.spec.workload)
    with watched(run, [tell], [step]):
        yield
