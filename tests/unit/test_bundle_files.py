"""The files of a trained model: whole, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ray_jobs.errors import JobFailed
from ray_jobs.models.bundle_files import INDEX, WEIGHTS, read_network, verify, write_network


def test_a_network_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    network.weight.data = torch.arange(6.0).reshape(3, 2).t()  # not contiguous
    write_network(tmp_path, network, {"model": {"name": "linear"}})
    index, weights = read_network(tmp_path)
    assert index["model"] == {"name": "linear"}
    assert weights.keys() == {"weight", "bias"}
    assert torch.equal(weights["weight"], network.weight)
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, WEIGHTS} == {"bundle.json",
           "weights.safetensors"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (INDEX, None, "the model's file bundle.json is missing"),
        (WEIGHTS, None, "the model's file weights.safetensors is missing"),
        (
            WEIGHTS,
            b"others",
            "the model's file weights.safetensors is not the one that was trained (sha256)",
        ),
    ],
)
def test_what_is_not_as_it_was_written(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    write_network(tmp_path, torch.nn.Linear(3, 2), {})
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(JobFailed) as refused:
        read_network(tmp_path)
    assert str(refused.value) == message


def test_every_file_is_looked_at(tmp_path: Path) -> None:
    write_network(tmp_path, torch.nn.Linear(3, 2), {})
    files = json.loads((tmp_path / INDEX).read_text())["files"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "trees").write_bytes(b"grown")
    with pytest.raises(JobFailed, match="more/trees is not the one"):
        verify(tmp_path, {**files, "more/trees": files[WEIGHTS]})
