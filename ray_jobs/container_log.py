"""The log of a job in a container: a line an event, which SageMaker reads metrics from."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_jobs.events import read_events
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from ray_jobs.storage import brief_cause

_FOLLOW_INTERVAL_S = 1.0


@contextmanager
def told(run: Run, steps: Collection[str] = ()) -> Iterator[None]:
    """Print the run's progress, a line an event, as long as it is at it.

    Args:
        steps: whose events; none: all. Other jobs may be at other steps of the same run.
    """
    ended = threading.Event()
    told = {_identity(event) for event in read_events(run.storage, run.folder)}  # cut off earlier

    def tell() -> None:
        for event in read_events(run.storage, run.folder):
            is_ours = not steps or event.get("step") in steps
            line = progress_line(event) if is_ours and _identity(event) not in told else None
            told.add(_identity(event))
            if line:
                print(line, flush=True)

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(_FOLLOW_INTERVAL_S)
            try:
                tell()
            except OSError as error:  # the storage: the next look tells what this one missed
                print(f"[emberline] warning: no progress: {brief_cause(error)}", flush=True)

    thread = threading.Thread(target=follow, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _identity(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """Several writers share a journal, so the place of an event in it is not fixed."""
    return tuple(event.get(key) for key in ("time", "step", "event", "member", "epoch"))


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
