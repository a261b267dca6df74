"""The log of a job in a container: a line an event, which SageMaker reads metrics from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ray_jobs import logs
from ray_jobs.logs import is_json
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from ray_jobs.watching import watched

_MARK = "[emberline] "  # of lines that a person or SageMaker looks for among others


def told(run: Run, steps: Collection[str] = ()) -> AbstractContextManager[None]:
    """Print the run's progress, a line an event, as long as it is at it.

    Args:
        steps: whose events; none: all. Other jobs may be at other steps of the same run.
    """
    return watched(run, [_tell_marked if is_json() else _print], steps)


def tell(event: Mapping[str, Any]) -> None:
    """An event as a JSON line, with the words for people in its message."""
    line = progress_line(event)
    logs.tell(event, line and line.removeprefix(_MARK))


def _tell_marked(event: Mapping[str, Any]) -> None:
    logs.tell(event, progress_line(event))


def _print(event: Mapping[str, Any]) -> None:
    line = progress_line(event)
    if line:
        print(line, flush=True)


def progress_line(event: Mapping[str, Any]) -> str | None:
    """What the log says of an event of the journal; None for one that it does not tell."""
    kind, member = event["event"], event.get("member", "model")
    if kind == "epoch":
        of = f"/{event['num_epochs']}" if "num_epochs" in event else ""
        head = f"[emberline] {member} epoch {event['epoch']}{of}:"
        return f"{head} {_numbers(event.get('metrics', {}))}".rstrip()
    if kind == "member_ended":
        why = f" ({event['reason']})" if event.get("reason") else ""
        head = f"[emberline] {member} {event['status']}{why}:"
        return f"{head} {_numbers(event.get('metrics') or {})}".rstrip()
    if kind == "resumed":
        return f"[emberline] {member} goes on from epoch {event['epoch']}"
    if kind == "step_started":
        return f"[emberline] step {event['step']}"
    if kind == "warning":
        return f"[emberline] warning: {event['message']}"
    return None


def score_line(split: str, metrics: Mapping[str, float]) -> str:
    """The scores of the whole model on one split."""
    return f"[emberline] {split} scores: {_numbers(metrics)}"


def score_pattern(split: str, metric: str) -> str:
    """The regular expression that finds a metric in `score_line`."""
    return rf"\[emberline\] {split} scores:.*\b{metric}={_NUMBER}"


def member_pattern(member: str, metric: str) -> str:
    """The regular expression that finds a member's metric, epoch by epoch, in `progress_line`."""
    return rf"\[emberline\] {member} (?:epoch|SUCCEEDED).*\b{metric}={_NUMBER}"


_NUMBER = r"([-+0-9.eE]+)"


def _numbers(metrics: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={float(value)!r}"
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    )


def tell_scores(result: JobResult) -> None:
    """Print the scores of the whole model."""
    for split, metrics in result.metrics.items():
        scores = {name: metric.value for name, metric in metrics.items()}
        print(score_line(split, scores), flush=True)
