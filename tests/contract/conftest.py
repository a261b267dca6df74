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
    from ray._private.authentication_test_utils import (
        authentication_env_guard,
        reset_auth_token_state,
    )

    token_path = tmp_path_factory.mktemp("token") / "token"
    token_path.write_text(secrets.token_hex(32))
    logs = tmp_path_factory.mktemp("nodes")
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie there: their paths must be short
    gcs, dashboard, *ports = free_ports(6)
    with authentication_env_guard():
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
        reset_auth_token_state()
        environment = {
            **os.environ,
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            command = [
                str(RAY), "start", "--block", "--num-cpus=1", "--object-store-memory=100000000",
                f"--temp-dir={scratch / name}", *words,
            ]  # fmt: skip
            with (logs / f"{name}.log").open("wb") as log:
                return subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=scratch
                )

        head = start(
            "a", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={ports[0]}",
            f"--dashboard-agent-listen-port={ports[1]}",
        )  # fmt: skip
        nodes = [head]
        try:
            wait_for_port(gcs, head, logs / "a.log")
            agent = f"--dashboard-agent-listen-port={ports[2]}"
            nodes.append(start("b", f"--address=127.0.0.1:{gcs}", agent))
            wait_for_port(dashboard, head, logs / "a.log")
            yield Cluster(f"http://127.0.0.1:{dashboard}", *nodes)
        finally:
            for node in reversed(nodes):
                end(node)
            shutil.rmtree(scratch, ignore_errors=True)
    reset_auth_token_state()


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
