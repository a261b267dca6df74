"""One version behind an endpoint: its /opt/ml tree, and the process that stands for its container.

Source: Amazon SageMaker AI Developer Guide, "Custom Inference Code with Hosting Services".
"""

from __future__ import annotations

import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.sagemaker_emulator.host import split_uri

_PING_S, _INVOCATION_S = 2, 60  # what the service waits for an answer


class Variant:
    """A container, from its tree to its end."""

    def __init__(self, base: Path, name: str, config: Mapping[str, Any], model: Mapping[str, Any]):
        self.base, self.name, self.config, self.model = base, name, config, model
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, s3: Any, environment: Mapping[str, str]) -> None:
        """Unpack the model and start `serve`.

        Raises:
            botocore.exceptions.ClientError: S3 refuses.
        """
        container = self.model["PrimaryContainer"]
        bucket, key = split_uri(container["ModelDataUrl"])
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        (self.base / "home").mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            archive.extractall(self.base / "model", filter="data")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if self.model.get("EnableNetworkIsolation"):  # it has no credentials either
            environment = {k: v for k, v in environment.items() if not k.startswith("AWS_")}
        with self.base.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs.container", "serve"],
                env={
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "HOME": str(self.base / "home"),
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                    **container.get("Environment", {}),
                    "EMBERLINE_ML_DIR": str(self.base),
                    "SAGEMAKER_BIND_TO_PORT": str(self.port),
                },
                cwd=self.base / "home",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def is_healthy(self) -> bool:
        try:
            return self._ask("GET", "/ping", b"", {}, _PING_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def invoke(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        """Status, content and media type of an answer."""
        return self._ask("POST", "/invocations", body, headers, _INVOCATION_S)

    def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("content-type", "")
        finally:
            connection.close()

    def log(self) -> str:
        return self.base.with_suffix(".log").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
