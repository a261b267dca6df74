"""Local deployments whose processes are killed, or whose files are taken away."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.deployments.base import Deployment
from ray_jobs.deployments.local import LocalDeployer
from ray_jobs.deployments.process import Process
from ray_jobs.errors import PreflightError
from tests.local_deployments import answering, ask, connect, deploy, deployments, state
from tests.unit.serving_models import CSV, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def deployer(tmp_path: Path) -> Iterator[LocalDeployer]:
    with deployments(tmp_path) as deployer:
        yield deployer


def worker(deployer: LocalDeployer) -> Process:
    found = state(deployer).worker
    assert found is not None
    return found


def find(deployer: LocalDeployer) -> Deployment:
    found = deployer.find("fire")
    assert found is not None
    return found


def test_killed_processes(deployer: LocalDeployer) -> None:
    quick = {"local": {"port": 0, "ping_interval_s": 0.1}}
    first = deploy(deployer, 1, **quick)
    supervisor, killed = state(deployer).supervisor, worker(deployer)

    os.kill(killed.pid, signal.SIGKILL)
    wait_for(lambda: not killed.is_alive)
    assert answering(first) == "1"  # it has waited for the next worker
    wait_for(lambda: find(deployer).status == "RUNNING")
    restarted = find(deployer)
    assert (restarted.url, restarted.details["restarts"]) == (first.url, "1")
    assert worker(deployer) != killed
    assert state(deployer).supervisor == supervisor

    hanging = worker(deployer)
    os.kill(hanging.pid, signal.SIGSTOP)
    wait_for(lambda: not hanging.is_alive)
    assert answering(first) == "1"
    wait_for(lambda: find(deployer).details["restarts"] == "2")

    orphan = worker(deployer)
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not orphan.is_alive)  # nobody has told it
    stopped = find(deployer)
    assert (stopped.status, stopped.url) == ("STOPPED", None)
    assert stopped.reason is not None
    assert "bring it back with emberline deploy" in stopped.reason
    with pytest.raises(PreflightError, match="'fire' does not answer: its supervisor has ended"):
        deployer.invoke("fire", b"", CSV)

    back = deploy(deployer, 1, **quick)
    assert (back.status, back.url) == ("RUNNING", first.url)  # where its clients look for it
    assert answering(back) == "1"
    assert state(deployer).supervisor != supervisor


def test_a_deployment_whose_folder_is_gone_ends(deployer: LocalDeployer) -> None:
    deployment = deploy(deployer, 1)
    connection = connect(deployment)
    assert ask(connection) == "1"
    supervisor, running = state(deployer).supervisor, worker(deployer)
    shutil.rmtree(deployment.details["folder"])
    wait_for(lambda: not supervisor.is_alive and not running.is_alive)
    assert deployer.list() == []
    connection.close()
