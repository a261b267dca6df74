"""A trained model as files: an index that says what they are, and the sha256 of each. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import JobFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

INDEX, WEIGHTS = "bundle.json", "weights.safetensors"


def write_index(folder: Path, about: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write what a bundle is, and the sha256 of each of its other files."""
    index = {**about, "files": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """What `write_index` wrote, once every file is found as it was.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobFailed(f"the model's file {INDEX} is missing") from None
    verify(folder, index["files"])
    return index


def add_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a bundle, and into its index.

    Raises:
        JobFailed: a file that is there already is missing or altered; names it.
    """
    about = read_index(folder)
    files = dict(about.pop("files"))
    for name, content in contents.items():
        assert name not in files, name
        (folder / name).write_bytes(content)
        files[name] = hashlib.sha256(content).hexdigest()
    write_index(folder, about, files)


def verify(folder: Path, files: Mapping[str, str]) -> None:
    """Compare each file with its sha256.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise JobFailed(f"the model's file {name} is missing")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise JobFailed(f"the model's file {name} is not the one that was trained (sha256)")


def write_network(folder: Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write the weights of a network, and an index, into an existing folder."""
    from safetensors.torch import save

    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    content = save(weights)
    (folder / WEIGHTS).write_bytes(content)
    write_index(folder, about, {WEIGHTS: hashlib.sha256(content).hexdigest()})


def read_network(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The index and the weights that `write_network` wrote.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    from safetensors.torch import load_file

    return read_index(folder), load_file(folder / WEIGHTS)
