"""A Ray cluster of two containers, its token from the environment as KubeRay gives it. The head
runs drivers and no tasks, as the chart's, so what is trained is trained on the worker."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.run import Run
from ray_jobs.spec import CONFIGS
from tests.image.engine import Container, Image, open_to_all, until

pytestmark = pytest.mark.timeout(1200)

RUN, STORAGE = "20261130-120000-abcd", "/storage"
_NODE = ("--block", "--object-store-memory=100000000")
_DASHBOARD = "http://127.0.0.1:8265"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    shutil.copy(CONFIGS / "fire.yaml", folder)
    return open_to_all(folder)


@pytest.fixture(scope="module")
def head(image: Image, storage: Path) -> Iterator[Container]:
    """With its worker, which shares its loopback and has an address of its own there."""
    settings = {
        "mounts": {storage: STORAGE},
        "environment": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
    }
    first = (
        "ray", "start", "--head", *_NODE, "--num-cpus=0", "--port=6379",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
    )  # fmt: skip
    second = (
        "ray", "start", *_NODE, "--num-cpus=2", "--address=127.0.0.1:6379",
        "--node-ip-address=127.0.0.2", "--dashboard-agent-listen-port=52366",
    )  # fmt: skip
    with image.started(*first, **settings) as head:
        until(lambda: nodes_of(head) == 1, head, timeout_s=300)
        with image.started(*second, network=f"container:{head.name}", **settings) as worker:
            until(lambda: nodes_of(head) == 2, worker, timeout_s=300)
            yield head


def nodes_of(head: Container) -> int:
    return head.exec("ray", "list", "nodes", f"--address={_DASHBOARD}").stdout.count(" ALIVE ")


def test_a_submitted_job_succeeds(head: Container, storage: Path) -> None:
    done = head.exec(
        "ray", "job", "submit", f"--address={_DASHBOARD}", "--submission-id=first", "--",
        "python", "-m", "ray_jobs.train", f"--spec={STORAGE}/fire.yaml",
        f"--storage={STORAGE}", f"--run-id={RUN}", "--set=data.samples=600",
        "--set=members=[logistic_regression]", "--set=tracking.enabled=false", timeout_s=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'first' succeeded" in done.stdout
    result = Run.open(str(storage), "fire", RUN).read_result()
    assert result is not None
    assert result.status == "SUCCEEDED"
    assert "f1" in result.metrics["test"]


def test_without_the_token_nothing_is_submitted(head: Container) -> None:
    done = head.exec(
        "env", "RAY_AUTH_TOKEN=" + "0" * 64,
        "ray", "job", "submit", f"--address={_DASHBOARD}", "--", "python", "--version",
    )  # fmt: skip
    assert (done.returncode, "authentication is enabled" in done.stderr) == (1, True), done.stderr
