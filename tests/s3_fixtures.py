"""The fixtures `minio` and `mortal_minio`: real S3 servers, where one has been built.

A test module asks for them with `pytest_plugins = ["tests.s3_fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.go_tools import built
from tests.s3_server import S3Server, s3_server, use


def _program() -> Path:
    program = built("minio")
    if program is None:
        pytest.skip("MinIO has not been built here: `make minio` does, where there is Go")
    return program


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that nobody kills, with the bucket `runs`."""
    with s3_server(_program(), tmp_path_factory.mktemp("minio")) as server:
        server.client().create_bucket(Bucket="runs")
        yield server


@pytest.fixture
def mortal_minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of the test's own, with the bucket `runs`, that this process reaches."""
    with s3_server(_program(), tmp_path / "minio") as server:
        server.client().create_bucket(Bucket="runs")
        use(server, monkeypatch)
        yield server
