"""Serve a trained model over HTTP: `python -m ray_jobs.serve --model FOLDER`.

In a container of SageMaker it is `serve`, with the model under /opt/ml/model.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs import logs
from ray_jobs.errors import EmberlineError, SpecError
from ray_jobs.ray_runtime import spin_briefly

if TYPE_CHECKING:
    from ray_jobs.monitoring.recorder import Recorder
    from ray_jobs.serving.routing import Mode

_PORT = 8080
_DRAIN_S, _TIMEOUT_S = 2.0, 30.0


@dataclass(frozen=True)
class ChallengerModel:
    """A second model beside the champion, and which requests it sees."""

    folder: Path
    version: str | None = None
    digest: str | None = None  # of its bundle.json; another is refused
    mode: Mode = "shadow"
    weight: float = 0.1  # 0 to 1, of the requests: that it answers, or as a shadow is asked too


@dataclass(frozen=True)
class Recording:
    """Where live records go, and how much of them."""

    storage: str
    name: str  # of the deployment
    share: float = 0.1  # 0 to 1, of the requests
    max_mb_per_day: float = 100.0  # 10^6 bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.serve`. Returns the exit code: 0 after SIGTERM, 4 for a model that is
    refused."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.serve",
        description="Serve a model: /ping, /invocations, /metrics, /version, /openapi.json.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="the model's folder, with its bundle.json")
    add("--host", default="127.0.0.1", help="default: 127.0.0.1; 0.0.0.0 for all interfaces")
    add("--port", type=int, default=_PORT, help=f"default: {_PORT}; 0: any that is free")
    add("--fd", type=int, help="an inherited socket that listens, in place of --host and --port")
    add("--control-fd", type=int, help="an inherited socket of the process that watches this one")
    add("--name", help="what /version calls the model; default: its workload")
    add("--version", help="the registry's; default: the first digits of the model's digest")
    add("--digest", help="refuse a model whose bundle.json has another sha256")
    add("--max-body-bytes", type=_at_least(1), help="of a request; default: the workload's")
    add("--max-rows", type=_at_least(1), help="of a request; default: the workload's")
    add("--max-batch-rows", type=_at_least(1), help="scored in one call; default: the workload's")
    add("--max-queue", type=_at_least(1), help="requests at once; default: the workload's")
    add("--max-wait-ms", type=float, help="an idle model waits for company; default: 0")
    add("--timeout-s", type=float, default=_TIMEOUT_S, help=f"of a request; default: {_TIMEOUT_S}")
    add("--drain-s", type=float, default=_DRAIN_S, help="from SIGTERM until no more is accepted")
    add("--challenger", type=Path, help="a second model's folder, for the same requests")
    add("--challenger-version", help="the registry's; default: the first digits of its digest")
    add("--challenger-digest", help="refuse a challenger whose bundle.json has another sha256")
    add("--mode", choices=("split", "shadow"), help="it answers, or is only asked; default: shadow")
    add("--weight", type=_fraction, help="of the requests, for the challenger; default: 0.1")
    add("--record", metavar="URI", help="storage root to write live records to; default: none")
    add("--record-name", help="what the deployment is called there; default: --name")
    add("--record-share", type=_fraction, help="of the requests; default: 0.1")
    add("--record-max-mb", type=_positive, help="of records a day, 10^6 bytes; default: 100")
    options = parser.parse_args(arguments)
    for main_option in ("challenger", "record"):
        if getattr(options, main_option) is None:
            belonging = ["mode", "weight"] if main_option == "challenger" else []
            for name, value in vars(options).items():
                is_its = name in belonging or name.startswith(f"{main_option}_")
                if is_its and value is not None:
                    parser.error(f"--{name.replace('_', '-')} belongs to --{main_option}")
    if options.record is not None and not (options.record_name or options.name):
        parser.error("--record needs --record-name")
    limits: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("max_body_bytes", "max_rows", "max_batch_rows", "max_queue")
        if getattr(options, name) is not None
    }
    if options.max_wait_ms is not None:
        limits["max_wait_s"] = options.max_wait_ms / 1000
    try:
        logs.setup()
        return serve(
            options.model,
            host=options.host,
            port=options.port,
            fd=options.fd,
            control_fd=options.control_fd,
            name=options.name,
            version=options.version,
            digest=options.digest,
            challenger=_challenger(options),
            recording=_recording(options),
            limits=limits,
            timeout_s=options.timeout_s,
            drain_s=options.drain_s,
        )
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code


def serve_container(base: Path) -> int:
    """What SageMaker's `serve` asks for: the model under `base`, on all interfaces, on the port
    that it names. EMBERLINE_MODEL_NAME and EMBERLINE_MODEL_VERSION say which model it is, and
    EMBERLINE_MODEL_DIGEST the sha256 of its bundle.json: another is refused.

    Raises:
        SpecError: the port is no number.
        JobFailed: the model is refused.
    """
    port = os.environ.get("SAGEMAKER_BIND_TO_PORT", str(_PORT))
    if not port.isdecimal():
        raise SpecError(f"SAGEMAKER_BIND_TO_PORT={port!r} is no port; leave it out for {_PORT}")
    return serve(
        base / "model",
        host="0.0.0.0",  # noqa: S104 - in a container, whose network is the boundary
        port=int(port),
        name=os.environ.get("EMBERLINE_MODEL_NAME"),
        version=os.environ.get("EMBERLINE_MODEL_VERSION"),
        digest=os.environ.get("EMBERLINE_MODEL_DIGEST"),
    )


def serve(
    model: Path,
    *,
    host: str,
    port: int,
    fd: int | None = None,
    control_fd: int | None = None,
    name: str | None = None,
    version: str | None = None,
    digest: str | None = None,
    challenger: ChallengerModel | None = None,
    recording: Recording | None = None,
    limits: dict[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
    drain_s: float = _DRAIN_S,
) -> int:
    """Serve a model until SIGTERM or SIGINT. Returns the exit code.

    Args:
        fd: a socket that listens, in place of one on `host` and `port`.
        control_fd: a socket of `ray_jobs.serving.server.run`'s `control`. What is asked before it
            hands over a listener, or past that one, is neither counted nor recorded.

    Raises:
        SpecError: the deployment's name cannot be a folder's.
        PreflightError: the port cannot be had, or the records' storage not be written.
        JobFailed: the model is refused, or a challenger that takes other requests.
    """
    spin_briefly()
    from ray_jobs.serving.model import load_model
    from ray_jobs.serving.server import listen, run
    from ray_jobs.serving.service import Service
    from ray_jobs.serving.variants import Challenger

    recorder = None if recording is None else _recorder(recording)
    second = None
    if challenger is not None:
        other = challenger
        second = Challenger(
            lambda: load_model(other.folder, name=name, version=other.version, digest=other.digest),
            other.mode,
            other.weight,
        )
    listener = listen(host, port) if fd is None else socket.socket(fileno=fd)
    control = None if control_fd is None else socket.socket(fileno=control_fd)
    service = Service(
        lambda: load_model(model, name=name, version=version, digest=digest),
        {**(limits or {}), "timeout_s": timeout_s},
        challenger=second,
        recorder=recorder,
        private_port=None if control is None else listener.getsockname()[1],
    )
    host, port = listener.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    logs.say(f"serving {model} on http://{place}:{port}", event="serving")
    return run(service, listener, drain_s=drain_s, timeout_s=timeout_s, control=control)


def _recorder(recording: Recording) -> Recorder:
    from ray_jobs.monitoring.recorder import Recorder
    from ray_jobs.storage import Storage, StorageUnavailable

    storage = Storage(recording.storage)
    try:
        storage.check_writable()
    except StorageUnavailable as error:  # which passes, and meanwhile the model shall answer
        logs.say(f"live records are lost for now: {error}", level="warning")
    return Recorder(
        storage, recording.name, share=recording.share, max_mb_per_day=recording.max_mb_per_day
    )


def _challenger(options: argparse.Namespace) -> ChallengerModel | None:
    if options.challenger is None:
        return None
    given = {
        "version": options.challenger_version,
        "digest": options.challenger_digest,
        "mode": options.mode,
        "weight": options.weight,
    }
    return ChallengerModel(options.challenger, **_set(given))


def _recording(options: argparse.Namespace) -> Recording | None:
    if options.record is None:
        return None
    given = {"share": options.record_share, "max_mb_per_day": options.record_max_mb}
    return Recording(options.record, options.record_name or options.name, **_set(given))


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _at_least(lowest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
