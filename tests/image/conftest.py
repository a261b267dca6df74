"""The image under test: the one that EMBERLINE_IMAGE names, as `make image-test` sets it."""

from __future__ import annotations

import os

import pytest

from tests.image.engine import Image, find_engine

IMAGE = os.environ.get("EMBERLINE_IMAGE")
collect_ignore_glob = [] if IMAGE else ["test_*.py"]  # no part of `make test`


@pytest.fixture(scope="session")
def image() -> Image:
    engine = find_engine()
    if engine is None:
        pytest.skip("no docker engine and no podman: apt-get install podman runc")
    assert IMAGE is not None
    done = engine("image", "inspect", IMAGE)
    assert done.returncode == 0, f"{done.stderr}make image TAG={IMAGE} builds it"
    return Image(engine, IMAGE)
