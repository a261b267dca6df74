"""MinIO, a real S3 server on loopback, which can be killed and started again where it was."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REGION = "us-east-1"
_START_S = 60  # on a busy machine


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class S3Server:
    """One server: always the same port, folder and credentials."""

    program: Path
    folder: Path
    port: int = field(default_factory=_free_port)
    access_key: str = field(default_factory=lambda: secrets.token_hex(8))
    # As AWS makes them: with characters that a URL or a shell would have to quote.
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(24) + "/+=")
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which every AWS SDK reaches it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def client(self, service: str = "s3") -> Any:
        """A boto3 client; MinIO also answers for `sts`."""
        import boto3

        return boto3.session.Session(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
        ).client(service, endpoint_url=self.url)

    def start(self) -> None:
        """Until it takes requests."""
        assert self._process is None, "it runs"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CALLHOME_ENABLE": "off",
            "GOMAXPROCS": "2",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "server", self.folder / "data", "--quiet", "--anonymous",
                 "--address", f"127.0.0.1:{self.port}"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """As a machine that loses its power does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=20)
            self._process = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/minio/health/ready", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def s3_server(program: Path, folder: Path) -> Iterator[S3Server]:
    """A server without a bucket."""
    folder.mkdir(exist_ok=True)
    server = S3Server(program, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and those that it starts reach a server."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which keeps the credentials of before
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
