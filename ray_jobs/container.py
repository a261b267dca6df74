"""What the image answers to `train` under SageMaker: `python -m ray_jobs.container train`.

Everything is below /opt/ml, or below EMBERLINE_ML_DIR:

    input/config/hyperparameters.json     the job description, in parts, and the run's id
    input/config/resourceconfig.json      the hosts
    input/config/inputdataconfig.json     the channels
    input/data/<channel>/                 their files
    checkpoints/                          root of the runs, kept in step with S3 by SageMaker
    model/                                what becomes model.tar.gz
    output/failure                        why it failed

Source: Amazon SageMaker AI Developer Guide, "How Amazon SageMaker AI Provides Training Information"
and "How Amazon SageMaker AI Processes Training Output".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    DataError,
    EmberlineError,
    JobFailed,
    SpecError,
    Stopped,
)
from ray_jobs.events import read_events
from ray_jobs.ray_runtime import spin_briefly
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from ray_jobs.sections import JobSpec
from ray_jobs.spec import parse_spec
from ray_jobs.storage import brief_cause

ML_DIR = "/opt/ml"
SPEC_PARTS, RUN_ID, STORAGE = "emberline.spec.{}", "emberline.run_id", "emberline.storage"
_MAX_FAILURE = 1024  # characters that DescribeTrainingJob gives back
_FOLLOW_INTERVAL_S = 1.0
_SOURCE_CHANNEL = re.compile(r"data_(\d+)")


@dataclass(frozen=True)
class ContainerJob:
    """What the files under input/config say."""

    spec: JobSpec  # as the user wrote it: what the run's folder is known by
    channels: dict[str, Path]
    run_id: str
    storage: str
    current_host: str
    hosts: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.container train`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.container", description=__doc__)
    parser.add_argument("command", choices=["train"])
    parser.parse_args(arguments)
    base = Path(os.environ.get("EMBERLINE_ML_DIR", ML_DIR))
    spin_briefly()
    try:
        result = train(base)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except EmberlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(result.to_json())
    return EXIT_OK


def train(base: Path) -> JobResult:
    """Carry out the job that stands under `base`; its model is then under model/.

    Raises:
        EmberlineError: the job failed; output/failure says why. `Stopped`: it was asked to stop.
        KeyboardInterrupt: it was asked to stop, and its workload has no checkpoint to write first.
    """
    from ray_jobs.train import run_job

    (base / "output" / "failure").unlink(missing_ok=True)
    try:
        job = read_job(base)
        if len(job.hosts) > 1:  # else each of them would train the whole job
            raise SpecError(
                f"{len(job.hosts)} hosts: this image trains on one; set sagemaker.instance_count: 1"
            )
        run = _open(job)
        with _sigterm_stops(run), _told(run):
            result = run_job(run)
            if result.status != "SUCCEEDED":
                raise JobFailed(result.reason or f"the run ended as {result.status}")
            _tell_scores(result)
            _write_model(run, result, base / "model")
        return result
    except Stopped:
        raise
    except Exception as error:
        _write_failure(base, str(error).strip() or type(error).__name__)
        raise


def read_job(base: Path) -> ContainerJob:
    """The job that SageMaker has written under `base`.

    Raises:
        SpecError: a file is missing or is not what SageMaker writes, or the job description is
            wrong.
        DataError: a channel has no files.
    """
    config = base / "input" / "config"
    values = _read_json(config / "hyperparameters.json")
    resources = _read_json(config / "resourceconfig.json")
    channels = _read_json(config / "inputdataconfig.json", default={})
    hosts = resources.get("hosts")
    current = resources.get("current_host")
    if not isinstance(hosts, list) or not isinstance(current, str) or current not in hosts:
        raise SpecError("resourceconfig.json: current_host is not one of hosts")
    if len(hosts) > 1 and STORAGE not in values:
        raise SpecError(
            f"{len(hosts)} hosts need the hyperparameter {STORAGE}, which all can reach"
        )
    raw = _join_spec(values)
    storage = values.get(STORAGE) or str(base / "checkpoints")
    return ContainerJob(
        spec=parse_spec(raw | {"storage": storage}, source="hyperparameters.json"),
        channels={name: _channel_folder(base, name) for name in channels},
        run_id=_text(values, RUN_ID),
        storage=storage,
        current_host=current,
        hosts=hosts,
    )


def _read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():  # a job without channels has no such file
        return default
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: not written by SageMaker: {error}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{path}: a mapping is expected, not a {type(found).__name__}")
    return found


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise SpecError(
            f"the hyperparameter {name} is missing; submit with emberline run --target sagemaker"
        )
    return value


def _join_spec(values: Mapping[str, Any]) -> dict[str, Any]:
    """The job description, whose parts stand under numbered names."""
    parts = [_text(values, SPEC_PARTS.format(0))]
    while SPEC_PARTS.format(len(parts)) in values:
        parts.append(_text(values, SPEC_PARTS.format(len(parts))))
    try:
        raw = json.loads("".join(parts))
    except ValueError as error:
        raise SpecError(f"the hyperparameters {SPEC_PARTS.format('*')}: {error}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"the hyperparameters {SPEC_PARTS.format('*')} are not a job description")
    return raw


def _channel_folder(base: Path, name: str) -> Path:
    folder = base / "input" / "data" / name
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataError(f"channel {name!r} has no files; look at the S3 prefix it was made from")
    return folder


def _open(job: ContainerJob) -> Run:
    """The run, as this container carries it out.

    Its folder keeps the description of the user, by which a resumed run is known: only this process
    goes by the other.
    """
    run = Run.create(job.spec, job.run_id)
    return Run(_as_carried_out(job.spec, job.channels), run.run_id)


def _as_carried_out(spec: JobSpec, channels: Mapping[str, Path]) -> JobSpec:
    """The description with its data in the channels, and without a registry that ends with the
    container."""
    raw = spec.model_dump(mode="json")
    if spec.tracking.enabled and not os.environ.get("MLFLOW_TRACKING_URI"):
        print(
            "[emberline] warning: not registered, for MLFLOW_TRACKING_URI names no server that "
            "outlives this container",
            flush=True,
        )
        raw["tracking"]["enabled"] = False
    for name, folder in channels.items():
        source = _SOURCE_CHANNEL.fullmatch(name)
        if name == "data":
            raw["data"]["path"] = str(folder)
        elif source and int(source[1]) < len(raw["data"].get("sources") or []):
            raw["data"]["sources"][int(source[1])]["path"] = str(folder)
        else:
            raise SpecError(
                f"channel {name!r}: name it data, for data.path, or data_0, data_1, ... for each "
                "of data.sources"
            )
    return parse_spec(raw, source="hyperparameters.json")


# Ends


@contextmanager
def _sigterm_stops(run: Run) -> Iterator[None]:
    """SageMaker sends SIGTERM two minutes before it takes the container away."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the job at once
        if not run.workload.stops_when_asked:
            raise KeyboardInterrupt
        run.request_stop()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _write_model(run: Run, result: JobResult, folder: Path) -> None:
    """Put the finished model into a folder that may be a mount, so it is emptied, not replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    run.workload.write_model(run, result, folder)


def _write_failure(base: Path, reason: str) -> None:
    output = base / "output"
    output.mkdir(parents=True, exist_ok=True)
    (output / "failure").write_text(reason[:_MAX_FAILURE], encoding="utf-8")


# The log, which SageMaker reads metrics from


@contextmanager
def _told(run: Run) -> Iterator[None]:
    """Print the run's progress, a line an event, as long as it is at it."""
    ended = threading.Event()
    told = {_identity(event) for event in read_events(run.storage, run.folder)}  # cut off earlier

    def tell() -> None:
        for event in read_events(run.storage, run.folder):
            line = progress_line(event) if _identity(event) not in told else None
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


def _tell_scores(result: JobResult) -> None:
    for split, metrics in result.metrics.items():
        scores = {name: metric.value for name, metric in metrics.items()}
        print(score_line(split, scores), flush=True)


if __name__ == "__main__":
    sys.exit(main())
