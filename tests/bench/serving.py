"""The scoring app against `mlflow models serve`, for the same version of a model in the same run.

    python -m tests.bench.serving [--storage FOLDER] [--set KEY=VALUE] [--requests 100000]
        [--mlflow-requests 1500] [--connections 32]

A `fire` run is trained, or the one that is registered under --storage is taken. Each server is a
process of its own, alone at the time; so is the client, which sends one row a request, over
connections that stay open, the same bytes to both: MLflow's `dataframe_split`. First over one
connection (a tenth of the requests, at most 2,000), then over all of them. Memory is resident, of
all processes of a server, after 200 requests and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from ray_jobs.data.features import FEATURES
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import SpecError
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import find_model

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "server", "requests", "p50 ms at 1", "p99 ms at 1", "connections", "rows/s", "p50 ms", "p99 ms",
    "MiB before", "MiB after", "command",
)  # fmt: skip
ROW = "25.0,5.0,45.0,40.0,10.0,5.0,2.0,1.0,3.0,1.5,5.0,2.0,30.0,5.0,1.0,450.0,50.0,5.0"
BODY = json.dumps(
    {"dataframe_split": {"columns": list(FEATURES), "data": [[float(x) for x in ROW.split(",")]]}}
).encode()
WARM_UP, MOST_ALONE = 200, 2000  # requests
START_S = 180.0
MIB = 1 << 20


@dataclass(frozen=True)
class Load:
    """What a client saw."""

    latencies_ms: np.ndarray
    seconds: float
    probability: float

    def percentile(self, q: float) -> float:
        return round(float(np.percentile(self.latencies_ms, q)), 3)

    @property
    def rate(self) -> float:
        return round(len(self.latencies_ms) / self.seconds, 1)


@dataclass(frozen=True)
class Measured:
    server: str
    alone: Load
    crowd: Load
    num_connections: int
    before: int  # bytes
    after: int

    def row(self) -> tuple[object, ...]:
        alone, crowd = self.alone, self.crowd
        return (
            self.server, len(crowd.latencies_ms), alone.percentile(50), alone.percentile(99),
            self.num_connections, crowd.rate, crowd.percentile(50), crowd.percentile(99),
            round(self.before / MIB, 1), round(self.after / MIB, 1),
        )  # fmt: skip


# The client, in a process of its own


def send(port: int, num_connections: int, num_requests: int) -> Load:
    return asyncio.run(_send(port, num_connections, num_requests))


async def _send(port: int, num_connections: int, num_requests: int) -> Load:
    left = iter(range(num_requests))
    latencies: list[float] = []
    answers: list[bytes] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            start = time.perf_counter()
            writer.write(_REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            answer = await reader.readexactly(_content_length(head))
            latencies.append(time.perf_counter() - start)
            answers[:] = [answer]
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(num_connections)))
    seconds = time.perf_counter() - start
    (prediction,) = json.loads(answers[0])["predictions"]
    return Load(np.array(latencies) * 1000, seconds, prediction["probability"])


_REQUEST = (
    b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise AssertionError(head)


# The servers


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, **environment: str
) -> Iterator[psutil.Process]:
    """A server that answers /ping, and its end."""
    bin_folder = str(Path(sys.executable).parent)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"  # where mlflow finds its server
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        family = [*server.children(recursive=True), server] if server.is_running() else []
        for member in family:
            member.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for member in alive:
            member.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def resident(server: psutil.Process) -> int:
    """Bytes, of all its processes."""
    return sum(one.memory_info().rss for one in [server, *server.children(recursive=True)])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def measure(
    name: str,
    command: Sequence[str],
    num_requests: int,
    num_connections: int,
    scratch: Path,
    **environment: str,
) -> Measured:
    port = free_port()
    command = [str(port) if word == "PORT" else word for word in command]
    with (
        started(command, port, scratch / f"{name}.log", **environment) as server,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
    ):
        client.submit(send, port, num_connections, WARM_UP).result()
        before = resident(server)
        num_alone = max(1, min(MOST_ALONE, num_requests // 10))
        alone = client.submit(send, port, 1, num_alone).result()
        crowd = client.submit(send, port, num_connections, num_requests).result()
        return Measured(name, alone, crowd, num_connections, before, resident(server))


# The model


def train(storage: Path, overrides: Sequence[str]) -> None:
    """Unless there is a model."""
    try:
        find_model(Storage(storage), "fire")
    except SpecError:
        words = [word for override in overrides for word in ("--set", override)]
        subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "run", "fire", "--storage", storage, *words],
            check=True,
        )


def compare(storage: Path, options: argparse.Namespace, scratch: Path) -> list[Measured]:
    release = fetch(Storage(str(storage)), "fire")
    model = release.model
    print(f"model {model}, {os.cpu_count()} CPUs", flush=True)
    ours = [
        sys.executable, "-m", "ray_jobs.serve", "--model", str(release.bundle), "--port", "PORT",
        "--version", str(model.version), "--digest", release.digest,
    ]  # fmt: skip
    theirs = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model.uri,
        "--env-manager", "local", "--host", "127.0.0.1", "--port", "PORT",
    ]  # fmt: skip
    both = [
        measure("emberline", ours, options.requests, options.connections, scratch),
        measure(
            "mlflow",
            theirs,
            options.mlflow_requests,
            options.connections,
            scratch,
            MLFLOW_TRACKING_URI=model.registry,
            MLFLOW_DISABLE_TELEMETRY="true",
        ),
    ]
    first, second = (one.crowd.probability for one in both)
    assert abs(first - second) < 1e-6, f"they disagree: {first}, {second}"
    return both


def show(ours: Measured, theirs: Measured) -> None:
    """A table of both, and their ratios."""
    print(f"{'':24}" + "".join(f"{title:>12}" for title in ("emberline", "mlflow", "ratio")))
    numbers = [
        [value for value in one.row() if isinstance(value, int | float)] for one in (ours, theirs)
    ]
    for name, a, b in zip(COLUMNS[1:-1], *numbers, strict=True):
        ratio = "" if name in ("requests", "connections") else f"{a / b:12.3f}"
        print(f"{name:24}{a:12,}{b:12,}{ratio}")
    print(f"{'memory, after / before':24}{ours.after / ours.before:12.3f}"
          f"{theirs.after / theirs.before:12.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--storage", type=Path, help="of a fire model, or for one; default: a scratch folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of the training")
    add("--requests", type=int, default=100_000, help="to emberline's server")
    add("--mlflow-requests", type=int, default=1_500)
    add("--connections", type=int, default=32)
    options = parser.parse_args()
    given = (f"--set {override}" for override in options.set)
    command = " ".join(
        [
            "python -m tests.bench.serving", *given, f"--requests {options.requests}",
            f"--mlflow-requests {options.mlflow_requests} --connections {options.connections}",
        ]
    )  # fmt: skip
    with TemporaryDirectory(prefix="emberline-bench-") as scratch:
        storage = options.storage.absolute() if options.storage else Path(scratch)
        train(storage, options.set)
        both = compare(storage, options, Path(scratch))
    show(*both)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((*one.row(), command) for one in both)


if __name__ == "__main__":
    main()
