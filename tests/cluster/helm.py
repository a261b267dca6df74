"""Real Helm against the test's cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.api import Object

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "emberline"
RELEASES = REPOSITORY / "charts" / "releases"
VALUE_SETS = {"default": None} | {
    path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))
}
Values = str | Path  # one of VALUE_SETS, or a file
_TIMEOUT_S = 120


def values_of(name: str) -> dict[str, Any]:
    path = VALUE_SETS[name]
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}


@dataclass(frozen=True)
class Helm:
    program: Path
    kubeconfig: Path
    home: Path  # of its caches and plugins

    def __call__(self, *words: str) -> str:
        """What it prints. Raises RuntimeError with what it says where it fails."""
        return _ended(self._start(*words), words)

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """While it runs; it is ended with the block."""
        process = self._start(*words)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=_TIMEOUT_S)

    def install(self, release: str, namespace: str, values: Values, chart: Path = CHART) -> None:
        """Waits until every pod is ready."""
        self._apply("install", release, namespace, values, chart)

    def upgrade(self, release: str, namespace: str, values: Values, chart: Path = CHART) -> None:
        self._apply("upgrade", release, namespace, values, chart)

    def template(self, release: str, namespace: str, values: Values) -> list[Object]:
        words = ("template", release, str(CHART), *_place(namespace), *_flags(values))
        return [item for item in yaml.safe_load_all(self(*words)) if item]

    def _apply(self, verb: str, release: str, namespace: str, values: Values, chart: Path) -> None:
        waiting = ("--wait", f"--timeout={_TIMEOUT_S}s")
        self(verb, release, str(chart), *_place(namespace), *_flags(values), *waiting)

    def _start(self, *words: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        homes = {
            f"HELM_{kind}_HOME": str(self.home / kind.lower())
            for kind in ("CACHE", "CONFIG", "DATA")
        }
        return subprocess.Popen(
            [str(self.program), *words],
            env={**kept, **homes, "KUBECONFIG": str(self.kubeconfig)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _ended(process: subprocess.Popen[str], words: tuple[str, ...]) -> str:
    stdout, stderr = process.communicate(timeout=_TIMEOUT_S + 60)
    if process.returncode:
        raise RuntimeError(f"helm {' '.join(words)}: {stderr.strip()}")
    return stdout


def _place(namespace: str) -> tuple[str, str]:
    return "--namespace", namespace


def _flags(values: Values) -> tuple[str, ...]:
    path = VALUE_SETS[values] if isinstance(values, str) else values
    return ("--values", str(path)) if path else ()
