"""The fixture `aws`: an account on loopback for one test.

A test module asks for it with `pytest_plugins = ["tests.sagemaker_emulator.fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sagemaker_emulator.aws import AWS, UNSET, open_account, start_moto


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server; `aws` empties it for each test."""
    with start_moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def aws(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AWS]:
    """An account that this process and those that it starts use."""
    with open_account(tmp_path / "sagemaker", moto) as account:
        for name in UNSET:
            monkeypatch.delenv(name, raising=False)
        for name, value in account.environment.items():
            monkeypatch.setenv(name, value)
        yield account
