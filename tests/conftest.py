"""Shared parts of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[1]


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says where it is looked for."""
    root = Path(os.environ.get("EMBERLINE_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"no real data at {name} (EMBERLINE_TEST_DATA names the folder that holds it)")
    return root / name


@pytest.fixture(autouse=True)
def _quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or changes, the user's MLflow server, AWS account or Ray cluster."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
