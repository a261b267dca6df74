"""A real Ray cluster of two nodes on this machine, which asks for a token."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ray_jobs.targets.ray import RayTarget
from ray_jobs.targets.ray_spec import RaySpec

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Cluster:
    """The head, on which drivers run, and a second node."""

    address: str
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]

    def target(self) -> RayTarget:
        return RayTarget(RaySpec(address=self.address, working_dir=str(REPOSITORY)))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a node with all of its processes, as a machine that loses its power does."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in (process, *family):
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)
    process.wait(timeout=20)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with token_cluster(tmp_path_factory.mktemp("token") / "token") as started:
        yield started


@contextmanager
def token_cluster(token_path: Path) -> Iterator[Cluster]:
    """The cluster, for as long as the context lasts; this process, and what it starts, has its
    token."""
    from ray._private.authentication_test_utils import (
        authentication_env_guard,
        reset_auth_token_state,
    )

    token_path.write_text(secrets.token_hex(32))
    with authentication_env_guard():
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
        reset_auth_token_state()
        with nodes() as place:
            head = place.start_head("a")
            second = place.start_second("b")
            yield Cluster(place.address, head, second)
    reset_auth_token_state()


@dataclass(frozen=True)
class Nodes:
    """Starts the nodes of one cluster, whose head always has the same address."""

    scratch: Path  # sockets lie there: its path must be short
    ports: list[int]
    started: list[subprocess.Popen[bytes]]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start_head(self, name: str) -> subprocess.Popen[bytes]:
        gcs, dashboard, client, agent, _ = self.ports
        head = self._start(
            name, "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        )  # fmt: skip
        for port in (gcs, dashboard):
            wait_for_port(port, head, self._log(name))
        return head

    def start_second(self, name: str) -> subprocess.Popen[bytes]:
        agent = f"--dashboard-agent-listen-port={self.ports[4]}"
        return self._start(name, f"--address=127.0.0.1:{self.ports[0]}", agent)

    def _log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [
            str(RAY), "start", "--block", "--num-cpus=1", "--object-store-memory=100000000",
            f"--temp-dir={self.scratch / name}", *words,
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        with self._log(name).open("wb") as log:
            node = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.scratch
            )
        self.started.append(node)
        return node


@contextmanager
def nodes() -> Iterator[Nodes]:
    place = Nodes(Path(tempfile.mkdtemp(prefix="ray-")), free_ports(5), [])
    try:
        yield place
    finally:
        for node in reversed(place.started):
            end(node)
        shutil.rmtree(place.scratch, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at, beyond those (10002 to 19999) that Ray gives to workers."""
    found: list[int] = []
    while len(found) < number:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        else:
            return
