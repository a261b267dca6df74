"""Images made without a builder: one layer of a few files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """Programs by their path in the image, and the command."""

    programs: Mapping[str, bytes]
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path, name: str) -> Path:
        """As `docker save` does, for `ctr images import`."""
        layer = _tar({program: (text, 0o755) for program, text in self.programs.items()})
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Entrypoint": list(self.entrypoint), "Env": variables},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            }
        ).encode()
        told = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        files = {
            "config.json": (config, 0o644),
            "layer.tar": (layer, 0o644),
            "manifest.json": (json.dumps(told).encode(), 0o644),
        }
        path.write_bytes(_tar(files))
        return path


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
