"""What the image answers to `train` and `serve` under SageMaker: `python -m ray_jobs.container
train`, `python -m ray_jobs.container serve`.

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
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs import logs
from ray_jobs.container_cluster import end_is_told, join, lead
from ray_jobs.container_log import tell_scores, told
from ray_jobs.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    DataError,
    EmberlineError,
    JobFailed,
    PreflightError,
    SpecError,
    Stopped,
)
from ray_jobs.lifecycle import carry_out
from ray_jobs.ray_runtime import spin_briefly
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from ray_jobs.sections import JobSpec
from ray_jobs.spec import parse_spec
from ray_jobs.workloads.base import COMBINE

ML_DIR = "/opt/ml"
SPEC_PARTS, RUN_ID, STORAGE = "emberline.spec.{}", "emberline.run_id", "emberline.storage"
PART = "emberline.part"  # a member, or COMBINE, where the run's parts are jobs of their own
_MAX_FAILURE = 1024  # characters that DescribeTrainingJob gives back
_CHANNEL_KEYS = {"data": "sources", "added": "added"}
_NUMBERED_CHANNEL = re.compile(rf"({'|'.join(_CHANNEL_KEYS)})_(\d+)")


@dataclass(frozen=True)
class ContainerJob:
    """What the files under input/config say."""

    spec: JobSpec  # as the user wrote it: what the run's folder is known by
    channels: dict[str, Path]
    run_id: str
    storage: str
    current_host: str
    hosts: list[str]  # the first carries the job out, the others lend it their processors
    network_interface: str | None
    part: str | None = None  # of the run; None: all of it


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.container train`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.container", description=__doc__)
    parser.add_argument("command", choices=["train", "serve"])
    options = parser.parse_args(arguments)
    base = Path(os.environ.get("EMBERLINE_ML_DIR", ML_DIR))
    spin_briefly()
    try:
        logs.setup()
        if options.command == "serve":
            from ray_jobs.serve import serve_container

            return serve_container(base)
        result = train(base)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    if result is not None:
        logs.show(result.to_json())
    return EXIT_OK


def train(base: Path) -> JobResult | None:
    """Carry out the job that stands under `base`; its model is then under model/.

    None on a host that only lends its processors to the first one, which has the model; and of a
    member, whose files are in the run's folder.

    Raises:
        EmberlineError: the job failed; output/failure says why. `Stopped`: it was asked to stop.
        KeyboardInterrupt: it was asked to stop, and its workload has no checkpoint to write first.
    """
    _check_writable(base / "output")
    (base / "output" / "failure").unlink(missing_ok=True)
    try:
        _check_writable(base / "model")
        job = read_job(base)
        if len(job.hosts) == 1:
            return _carry_out(job, base / "model")
        _use_interface(job)
        run = Run(job.spec, job.run_id)
        if job.current_host == job.hosts[0]:
            with end_is_told(run):
                return _carry_out(job, base / "model")
        join(run, job.hosts, job.current_host)
        return None
    except Stopped:
        raise
    except Exception as error:
        _write_failure(base, str(error).strip() or type(error).__name__)
        raise


def _carry_out(job: ContainerJob, model: Path) -> JobResult | None:
    """None: the job was one member of the run."""
    run = _open(job)
    logs.bind(run_id=run.run_id, workload=run.spec.workload)
    cluster = lead(run, job.hosts) if len(job.hosts) > 1 else nullcontext()
    member = job.part if job.part != COMBINE else None
    steps = () if member is None else ("prepare", member)
    with _sigterm_stops(run), told(run, steps), cluster:
        if member is not None:
            _train_member(run, member)
            return None
        work = run.workload.work if job.part is None else run.workload.combine
        result = carry_out(run, lambda: work(run))
        if result.status != "SUCCEEDED":
            raise JobFailed(result.reason or f"the run ended as {result.status}")
        tell_scores(result)
        _write_model(run, result, model)
    return result


def _train_member(run: Run, name: str) -> None:
    if name not in run.spec.families():
        raise SpecError(f"the hyperparameter {PART} is {name!r}, which is no member of the run")
    result = run.workload.train_member(run, name)
    if result.status != "SUCCEEDED":
        raise JobFailed(result.reason or f"{name} ended as {result.status}")


def _use_interface(job: ContainerJob) -> None:
    """Gloo and NCCL take the network that connects the hosts: the container may have others."""
    if job.network_interface:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", job.network_interface)


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
        hosts=sorted(hosts),
        network_interface=resources.get("network_interface_name"),
        part=values.get(PART),
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
    data = raw["data"]
    for name, folder in channels.items():
        files = f"{folder}/**/*"  # all of them, by the names that they had
        numbered = _NUMBERED_CHANNEL.fullmatch(name)
        entries = (data.get(_CHANNEL_KEYS[numbered[1]]) or []) if numbered else []
        number = int(numbered[2]) if numbered else 0
        if name == "data":
            data["path"] = files
        elif number >= len(entries):
            raise SpecError(
                f"channel {name!r}: name it data, for data.path; data_0, data_1, ... for each of "
                "data.sources; or added_0, added_1, ... for each of data.added"
            )
        elif isinstance(entries[number], dict):  # a folder of pictures
            entries[number]["path"] = str(folder)
        else:
            entries[number] = files
    return parse_spec(raw, source="hyperparameters.json")


# Ends


def _check_writable(folder: Path) -> None:
    """Rather now than when the model is trained."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        raise PreflightError(
            f"{folder}: the user {os.getuid()} may not write there; give it that folder, or build "
            "the image with --build-arg UID=0, for SageMaker's folders are root's"
        )


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
    (base / "output" / "failure").write_text(reason[:_MAX_FAILURE], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
