"""A Ray node on this host: `ray start`, and its end by its own processes' ids (`ray stop` would end
every Ray of the machine)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import psutil

from ray_jobs import ray_runtime
from ray_jobs.errors import RetryableError
from ray_jobs.sections import ResourceSpec

_NOTICE_S = 10.0  # for its processes to end


@dataclass(frozen=True)
class RayNode:
    """Ray's processes on one host."""

    host: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def failure(self) -> RetryableError:
        """What a node that has ended by itself is for the job; its own words go to stderr."""
        self.log.seek(0)
        sys.stderr.write(self.log.read().decode("utf-8", errors="replace"))
        return RetryableError(
            f"Ray has ended on host {self.host!r}; what it said is in that host's log. Submit the "
            "run again: it goes on from its last checkpoint"
        )

    def end(self) -> None:
        """End its processes; returns when they have. By then all work is over, so nothing is lost:
        asked politely, a node whose head has gone already takes long."""
        if self.has_ended():  # with all that it had started
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):  # most follow the first at once
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=_NOTICE_S)


@contextmanager
def ray_node(
    host: str, address: str, token: str, resources: ResourceSpec, *words: str
) -> Iterator[RayNode]:
    """A node of a cluster that asks for a token, for as long as the context lasts.

    The token is set in this process too, which may then connect.

    Args:
        host: what the cluster calls the node.
        address: its IP address, by which the others reach it.
        resources: how much of the host it offers.
        words: further ones of `ray start`: `--head`, or the head's `--address`.
    """
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    ray_runtime.quiet_environment()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
        f"--node-name={host}", f"--node-ip-address={address}",
        f"--num-cpus={ray_runtime.available_cpus(resources)}",
        f"--object-store-memory={ray_runtime.OBJECT_STORE_BYTES}",
        "--dashboard-agent-listen-port=0",  # any: nobody asks there
        *words,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        node = RayNode(host, process, log)
        try:
            yield node
        finally:
            node.end()
