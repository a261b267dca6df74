"""Serve a trained model over HTTP: `python -m ray_jobs.serve --model FOLDER`.

In a container of SageMaker it is `serve`, with the model under /opt/ml/model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.errors import EmberlineError, SpecError
from ray_jobs.ray_runtime import spin_briefly

_PORT = 8080
_DRAIN_S, _TIMEOUT_S = 2.0, 30.0


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
    options = parser.parse_args(arguments)
    limits: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("max_body_bytes", "max_rows", "max_batch_rows", "max_queue")
        if getattr(options, name) is not None
    }
    if options.max_wait_ms is not None:
        limits["max_wait_s"] = options.max_wait_ms / 1000
    try:
        return serve(
            options.model,
            host=options.host,
            port=options.port,
            name=options.name,
            version=options.version,
            digest=options.digest,
            limits=limits,
            timeout_s=options.timeout_s,
            drain_s=options.drain_s,
        )
    except EmberlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def serve_container(base: Path) -> int:
    """What SageMaker's `serve` asks for: the model under `base`, on all interfaces, on the port
    that it names. EMBERLINE_MODEL_NAME and EMBERLINE_MODEL_VERSION say which model it is.

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
    )


def serve(
    model: Path,
    *,
    host: str,
    port: int,
    name: str | None = None,
    version: str | None = None,
    digest: str | None = None,
    limits: dict[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
    drain_s: float = _DRAIN_S,
) -> int:
    """Serve a model until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        PreflightError: the port cannot be had.
        JobFailed: the model is refused.
    """
    spin_briefly()
    from ray_jobs.serving.model import load_model
    from ray_jobs.serving.server import listen, run
    from ray_jobs.serving.service import Service

    listener = listen(host, port)
    service = Service(
        lambda: load_model(model, name=name, version=version, digest=digest),
        {**(limits or {}), "timeout_s": timeout_s},
    )
    place = f"[{host}]" if ":" in host else host
    print(f"serving {model} on http://{place}:{listener.getsockname()[1]}", file=sys.stderr)
    return run(service, listener, drain_s=drain_s, timeout_s=timeout_s)


def _at_least(lowest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
