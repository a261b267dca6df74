"""Containers of the image, held as a pod holds them: no root, no capability, a root file system
that cannot be written, and no network but the loopback."""

from __future__ import annotations

import json
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

USER = 65532  # in no /etc/passwd, and not the image's own
WAIT_S = 120.0  # for a busy machine
_MAX_PROCESSES = 16384

_ASK = """
import http.client, json, sys
method, path, port, content = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
connection.request(method, path, content or None, {"content-type": "text/csv"})
response = connection.getresponse()
print(json.dumps([response.status, response.read().decode()]))
"""


@dataclass(frozen=True)
class Engine:
    """docker, or podman."""

    command: tuple[str, ...]
    run_options: tuple[str, ...]

    def __call__(self, *words: str, timeout_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *words], capture_output=True, text=True, check=False, timeout=timeout_s
        )


def find_engine() -> Engine | None:
    """None: there is none."""
    docker = shutil.which("docker")
    if (
        docker
        and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0
    ):
        return Engine((docker,), ())
    podman = shutil.which("podman")
    if podman is None:
        return None
    # A process that may not raise its limits cannot give a container podman's own ones.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = (f"--ulimit=nofile={files}:{files}", f"--ulimit=nproc={_MAX_PROCESSES}")
    runc = shutil.which("runc")  # crun does not start one in every sandbox
    runtime = ("--runtime", runc) if runc else ()
    return Engine((podman, *runtime), ("--read-only-tmpfs=false", *limits))


@dataclass
class Container:
    """One that runs by itself."""

    engine: Engine
    name: str

    def ask(self, method: str, path: str, content: str = "", port: int = 8080) -> tuple[int, str]:
        """Over HTTP, from within. (0, the reason) if nobody answers."""
        done = self.exec("python", "-c", _ASK, method, path, str(port), content)
        if done.returncode:
            return 0, done.stderr
        status, body = json.loads(done.stdout)
        return status, body

    def exec(self, *words: str, timeout_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        return self.engine("exec", self.name, *words, timeout_s=timeout_s)

    def is_running(self) -> bool:
        return self.engine("inspect", "--format={{.State.Running}}", self.name).stdout == "true\n"

    def log(self) -> str:
        done = self.engine("logs", self.name)
        return done.stdout + done.stderr

    def terminate(self) -> int:
        """SIGTERM, as a pod's end sends it. Returns the exit code."""
        self.engine("kill", "--signal=TERM", self.name)
        return self.wait()

    def wait(self) -> int:
        done = self.engine("wait", self.name)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)


@dataclass(frozen=True)
class Image:
    engine: Engine
    name: str
    user: str = f"{USER}:{USER}"
    options: tuple[str, ...] = field(
        default=(
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--tmpfs=/tmp:rw,size=2g,mode=1777",
            "--shm-size=512m",
        )
    )

    def run(
        self, *words: str, timeout_s: float = WAIT_S, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """The image with these words, to its end."""
        with self._named() as name:
            command = self._command(name, *words, **settings)  # type: ignore[arg-type]
            return self.engine(*command, timeout_s=timeout_s)

    @contextmanager
    def started(self, *words: str, **settings: object) -> Iterator[Container]:
        with self._named() as name:
            command = self._command(name, *words, **settings)  # type: ignore[arg-type]
            done = self.engine(command[0], "--detach", *command[1:])
            assert done.returncode == 0, done.stderr
            yield Container(self.engine, name)

    @contextmanager
    def _named(self) -> Iterator[str]:
        name = f"emberline-test-{secrets.token_hex(6)}"
        try:
            yield name
        finally:
            self.engine("rm", "--force", name)

    def _command(
        self,
        name: str,
        *words: str,
        mounts: Mapping[Path, str] | None = None,
        environment: Mapping[str, str] | None = None,
        network: str = "none",
        entrypoint: str | None = None,
    ) -> list[str]:
        return [
            "run",
            f"--name={name}",
            f"--network={network}",
            f"--user={self.user}",
            *self.options,
            *self.engine.run_options,
            *(f"--volume={here}:{there}" for here, there in (mounts or {}).items()),
            *(f"--env={key}={value}" for key, value in (environment or {}).items()),
            *([f"--entrypoint={entrypoint}"] if entrypoint else []),
            self.name,
            *words,
        ]


def until(holds: Callable[[], bool], container: Container, timeout_s: float = WAIT_S) -> None:
    """Wait, as long as the container runs."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert container.is_running(), container.log()
        assert time.monotonic() < deadline, container.log()
        time.sleep(0.5)


def open_to_all(folder: Path) -> Path:
    """The container's user owns nothing out here."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return folder
