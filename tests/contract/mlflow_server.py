"""MLflow's own server with PostgreSQL behind it, both on loopback."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest

PASSWORD = secrets.token_hex(16)
_START_S = 200  # on a busy machine; migrations of a new database are among it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _binaries() -> Path:
    """Where PostgreSQL's programs are, or a skip."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        pytest.skip("no PostgreSQL here: initdb is neither on PATH nor in /usr/lib/postgresql")
    return installed[-1].parent


@contextmanager
def postgresql() -> Iterator[str]:
    """A new database of a new server, which asks for a password: SQLAlchemy's URI of it."""
    binaries = _binaries()
    home = Path(tempfile.mkdtemp(prefix="emberline-pg-"))
    user = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
    try:
        pwfile = home / "password"
        pwfile.write_text(PASSWORD)
        pwfile.chmod(0o644)
        subprocess.run(
            [binaries / "initdb", "-D", home / "data", "-U", "mlflow", "-A", "scram-sha-256",
             "--pwfile", pwfile, "-E", "UTF8", "--no-locale", "--no-sync"],
            check=True, capture_output=True, cwd=home, timeout=_START_S, **user,
        )  # fmt: skip
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(home),
            "fsync": "off",
            "shared_buffers": "32MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", home / "data", "-p", str(port), *options],
                cwd=home, stdout=log, stderr=log, **user,
            )  # fmt: skip
        try:
            uri = f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
            _wait(lambda: _connects(port), server, home / "log")
            yield uri
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown: postgres(1)
            server.wait(60)
    finally:
        shutil.rmtree(home)


@contextmanager
def mlflow_server(backend: str, folder: Path, artifacts: str = "") -> Iterator[str]:
    """MLflow's server with artifacts behind it, in `folder` or at a URI: its address."""
    from cryptography.fernet import Fernet

    port = free_port()
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend,
             "--artifacts-destination", artifacts or str(folder / "artifacts"), "--serve-artifacts",
             "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=folder, env=environment, stdout=file, stderr=file,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _is_healthy(url), server, log)
        yield url
    finally:
        family = [server, *psutil.Process(server.pid).children(recursive=True)]
        for process in family:
            process.terminate()
        server.wait(60)
        psutil.wait_procs(family[1:], timeout=60)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def _connects(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(
            host="127.0.0.1", port=port, user="mlflow", password=PASSWORD, dbname="postgres"
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


def _wait(holds, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
