"""Commands as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EMBERLINE = str(Path(sys.executable).with_name("emberline"))


class Shell:
    """A folder in which `emberline` is called."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None):
        self.folder = folder
        self._environment = {**os.environ, "COLUMNS": "200", **(environment or {})}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [EMBERLINE, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def call(self, *words: str, code: int = 0) -> tuple[str, str]:
        """What it prints on stdout and stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, (words, out, err)
        assert "Traceback" not in err
        return out, err

    def state(self, run_id: str, *words: str) -> dict[str, Any]:
        out, _ = self.call("status", "--json", *words)
        found = [run for run in json.loads(out) if run["run_id"] == run_id]
        return found[0] if found else {"status": "PENDING"}  # its folder is not made yet

    def wait_for(self, run_id: str, status: str, *words: str) -> None:
        deadline = time.monotonic() + 120
        while (found := self.state(run_id, *words))["status"] != status:
            assert time.monotonic() < deadline, found
            assert found["status"] in ("PENDING", "RUNNING"), found


def settings(*keys: str) -> list[str]:
    """`--set` for each."""
    return [part for key in keys for part in ("--set", key)]
