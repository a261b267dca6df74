"""`emberline run`, `status`, `logs` and `stop` on a real cluster, as a user types them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import REPOSITORY, Cluster
from tests.contract.shell import Shell, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

QUICK = ("data.samples=2000", "members=[logistic_regression]")
LONG = ("data.samples=2000", "members={lstm_classifier: {epochs: 20000, patience: 20000}}")


class ClusterShell(Shell):
    def __init__(self, cluster: Cluster, folder: Path):
        super().__init__(folder)
        self._address = cluster.address

    def job(self, run_id: str, *overrides: str) -> list[str]:
        keys = ("tracking.enabled=false", f"ray.working_dir={REPOSITORY}", *overrides)
        return ["run", "fire", "--address", self._address, "--run-id", run_id, *settings(*keys)]


@pytest.fixture
def shell(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterShell]:
    shell = ClusterShell(cluster, tmp_path)
    yield shell
    shell.call("stop", "--all")


def test_a_run_is_followed_to_its_result(shell: ClusterShell) -> None:
    out, err = shell.call(*shell.job("first", *QUICK), "--json")
    result = json.loads(out)
    assert (result["run_id"], result["status"]) == ("first", "SUCCEEDED")
    assert "submitted to ray, as fire-first" in err
    assert "logistic_regression: succeeded" in err
    again, err = shell.call(*shell.job("first", *QUICK), "--json")
    assert json.loads(again) == result
    assert "run first is done; this is its result" in err
    out, _ = shell.call("status", "first", "--metrics")
    value = result["metrics"]["test"]["f1"]["value"]
    assert "succeeded" in out
    assert f"{value:.4f}" in out
    out, _ = shell.call("logs", "first")
    assert '"run_id": "first"' in out


def test_an_interrupt_leaves_the_run_at_work_and_says_how_to_go_on(shell: ClusterShell) -> None:
    command = shell.start(*shell.job("away", *LONG))
    shell.wait_for("away", "RUNNING")
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    storage = shell.folder / "runs"
    assert err.splitlines()[-5:] == [
        "interrupted: the run goes on at ray, as fire-away",
        f"look     emberline status away --storage {storage}",
        f"follow   emberline logs away --storage {storage} -f",
        f"stop     emberline stop away --storage {storage}",
        f"attach   emberline run fire --resume --run-id away --storage {storage}",
    ]
    assert shell.state("away")["status"] == "RUNNING"
    _, err = shell.call("run", "fire", "--run-id", "away", "--resume", "--target", "local", code=2)
    assert "run 'away' is at work on ray; attach to it with --target ray, or stop it" in err
    out, _ = shell.call("stop", "away")
    assert "stopped fire/away on ray, as fire-away" in out
    out, _ = shell.call("stop", "away")
    assert "fire/away on ray, as fire-away had ended" in out
    shell.call("status", "away", code=130)


def test_an_interrupt_stops_the_run_if_that_is_asked_for(shell: ClusterShell) -> None:
    command = shell.start(*shell.job("ended", *LONG), "--stop-on-interrupt")
    shell.wait_for("ended", "RUNNING")
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=100)
    assert command.returncode == 130
    assert "stopped: nothing of it is left running" in err
    assert shell.state("ended")["status"] == "STOPPED"


def test_all_that_was_started_is_stopped_on_every_target(shell: ClusterShell) -> None:
    shell.call(*shell.job("there", *LONG), "--detach")
    here = [word for word in shell.job("here", *LONG) if not word.startswith("http")]
    here.remove("--address")
    shell.call(*here, "--detach")
    waiting = shell.start("status", "there", "here", "--wait", "--interval", "0.5")
    for run_id in ("there", "here"):
        shell.wait_for(run_id, "RUNNING")
    out, _ = shell.call("stop", "--all", "--json")
    stopped = {(one["run"], one["target"]) for one in json.loads(out)["stopped"]}
    assert stopped == {("fire/there", "ray"), ("fire/here", "local")}
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "fire/there: running" in err
    assert "fire/here: stopped" in err
    out, _ = shell.call("stop", "--all")
    assert "nothing is running" in out


def test_a_run_that_fails_says_why_and_shows_its_log(shell: ClusterShell) -> None:
    _, err = shell.call(*shell.job("bad", "data.path=missing.csv"), code=3)
    assert err.splitlines()[-1].startswith("error: ")
    assert "missing.csv" in err.splitlines()[-1]
    out, _ = shell.call("status", "bad", "--wait", code=3)
    assert "fire/bad: " in out
    assert "missing.csv" in out
