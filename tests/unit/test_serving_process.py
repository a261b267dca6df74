"""The server as a process of its own: its start, what it is asked over real sockets, its end."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import ray_jobs
from ray_jobs.bundle import load_bundle
from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.result import parse_result
from ray_jobs.run import Run
from ray_jobs.serve import serve_container
from tests.conftest import arguments
from tests.unit.serving_models import PUBLISHED, WAIT_S, fire_folder, readings, to_csv, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SERVE = (sys.executable, "-m", "ray_jobs.serve", "--port", "0", "--model")
CONTAINER = (sys.executable, "-m", "ray_jobs.container", "serve")


class Server:
    """A process that serves, and the port it has chosen."""

    def __init__(self, *command: str, **environment: str):
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        line = self.stderr.readline()
        assert line.startswith("serving "), line
        self.port = urlsplit(line.split()[-1]).port

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"content-type": "text/csv"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def invoke(self, body: str = PUBLISHED) -> tuple[int, dict]:
        return self.ask("POST", "/invocations", body)

    def ping(self) -> tuple[int, dict]:
        return self.ask("GET", "/ping")

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.ping()[0] == 200)


@contextmanager
def started(*command: str, **environment: str) -> Iterator[Server]:
    server = Server(*command, **environment)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.stderr.close()


def test_from_the_first_request_to_the_last() -> None:
    with started(*SERVE, str(fire_folder()), "--max-wait-ms", "1500", "--drain-s", "1") as server:
        server.wait_until_ready()
        waiting: list[tuple[int, dict]] = []
        thread = threading.Thread(target=lambda: waiting.append(server.invoke()))
        thread.start()
        wait_for(lambda: b"in_flight 1.0" in metrics(server))
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ping() == (503, {"status": "draining"}))
        thread.join()
        ((status, answer),) = waiting
        assert (status, len(answer["predictions"])) == (200, 1)
        assert server.process.wait(WAIT_S) == 0
        assert server.stderr.read() == ""


def metrics(server: Server) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("GET", "/metrics")
    content = connection.getresponse().read()
    connection.close()
    return content


def test_real_sockets() -> None:
    with started(*SERVE, str(fire_folder()), "--timeout-s", "20") as server:
        server.wait_until_ready()
        x = readings(40, 5)
        _, answer = server.invoke(to_csv(x))
        said = [one["probability"] for one in answer["predictions"]]
        assert said == load_bundle(fire_folder()).score(x).tolist()
        # who sends far too much is told so, though it listens only when it has said all
        status, answer = server.invoke("1" * (20 << 20))
        assert (status, answer["error"]) == (
            413, "the body is larger than 4194304 bytes; send less at once",
        )  # fmt: skip
        # who hangs up in the middle of a body leaves nothing behind
        head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: text/csv\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as cut:
            cut.sendall(head + b"Content-Length: 1000\r\n\r\n1.0,")
            wait_for(lambda: b"in_flight 1.0" in metrics(server))
        wait_for(lambda: b"in_flight 0.0" in metrics(server))
        # what is no HTTP is refused
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.sendall(b"\x16\x03\x01\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 400 ")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_S) == 130
        assert "Traceback" not in server.stderr.read()


def test_a_body_that_does_not_come_is_given_up() -> None:
    with started(*SERVE, str(fire_folder()), "--timeout-s", "1") as server:
        server.wait_until_ready()
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as slow:
            slow.sendall(
                b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: text/csv\r\n"
                b"Content-Length: 1000\r\n\r\n1.0,"
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_an_altered_model_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = shutil.copytree(fire_folder(), tmp_path / "model")
    name = "members/lstm_classifier/weights.safetensors"
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with started(*SERVE, str(folder)) as server:
        assert server.process.wait(WAIT_S) == 4
        assert server.stderr.read() == (
            f"error: the model's file {name} is not the one that was trained (sha256)\n"
        )


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*SERVE[:4], port, "--model", str(fire_folder())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use; set --host or --port\n"
    )


def test_in_a_container(tmp_path: Path) -> None:
    shutil.copytree(fire_folder(), tmp_path / "model")
    variables = {"SAGEMAKER_BIND_TO_PORT": "0", "EMBERLINE_MODEL_VERSION": "12"}
    with started(*CONTAINER, EMBERLINE_ML_DIR=str(tmp_path), **variables) as server:
        server.wait_until_ready()
        status, answer = server.invoke()
        assert (status, answer["predictions"][0]["model_version"]) == (200, "12")
        server.process.terminate()
        assert server.process.wait(WAIT_S) == 0


def test_a_container_refuses_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(fire_folder(), tmp_path / "model")
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "0")
    monkeypatch.setenv("EMBERLINE_MODEL_DIGEST", "0" * 64)
    with pytest.raises(JobFailed, match="000000000000"):
        serve_container(tmp_path)


def test_a_trained_model_is_served_as_it_was_tested(tmp_path: Path) -> None:
    settings = ("data.samples=600", "members=[logistic_regression]", "tracking.enabled=false")
    spec = Path(ray_jobs.__file__).parent / "configs" / "fire.yaml"
    command = [sys.executable, "-m", "ray_jobs.train", "--spec", str(spec), "--run-id", "a"]
    done = subprocess.run(
        [*command, "--storage", str(tmp_path / "runs"), *arguments(*settings)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * WAIT_S,
        check=True,
    )
    result = parse_result(done.stdout, where="stdout")
    run = Run.open(str(tmp_path / "runs"), "fire", "a")
    (tmp_path / "model").mkdir()
    form = run.workload.write_model(run, result, tmp_path / "model")
    rows = form.example.to_numpy(np.float32)
    with started(*SERVE, str(tmp_path / "model")) as server:
        server.wait_until_ready()
        _, answer = server.invoke(to_csv(rows, list(form.example.columns)))
        said = [one["probability"] for one in answer["predictions"]]
        assert said == load_bundle(tmp_path / "model").score(rows).tolist()


def test_a_port_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "http")
    with pytest.raises(SpecError, match="SAGEMAKER_BIND_TO_PORT='http' is no port; leave it out"):
        serve_container(tmp_path)
