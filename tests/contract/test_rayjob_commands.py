"""`emberline … --target rayjob`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.shell import Shell, settings
from tests.kubernetes_emulator import Cluster, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

QUICK = ("data.samples=2000", "members=[logistic_regression]")
LONG = ("data.samples=2000", "members={lstm_classifier: {epochs: 9999, patience: 9999}}")


class ClusterShell(Shell):
    def __init__(self, kubernetes: Cluster, folder: Path):
        super().__init__(folder, {"KUBECONFIG": str(kubernetes.kubeconfig())})
        self.storage = str(folder / "runs")

    def job(self, *overrides: str) -> list[str]:
        keys = (
            "tracking.enabled=false", "rayjob.image=emberline:test",
            f"rayjob.volumes.runs={self.storage}", *overrides,
        )  # fmt: skip
        return ["fire", "--target", "rayjob", "--storage", self.storage, *settings(*keys)]


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes", runs=True) as started:
        started.put("persistentvolumeclaims", "runs", {})
        yield started


@pytest.fixture
def shell(kubernetes: Cluster, tmp_path: Path) -> ClusterShell:
    return ClusterShell(kubernetes, tmp_path)


def test_a_run_is_followed_to_its_result(kubernetes: Cluster, shell: ClusterShell) -> None:
    shell.call("doctor", *shell.job())
    plan = json.loads(shell.call("run", *shell.job(*QUICK), "--dry-run", "--json")[0])
    assert {check["name"]: check["passed"] for check in plan["target"]["checks"]}["RayJob"]
    assert kubernetes.names("rayjobs") == []

    words = ["run", *shell.job(*QUICK), "--run-id", "first"]
    out, err = shell.call(*words)
    assert "submitted to rayjob, as fire-first" in err
    assert "fire first: succeeded, the single member logistic_regression" in out
    assert json.loads(shell.call(*words, "--json")[0])["status"] == "SUCCEEDED"  # the same again
    place = ("--storage", shell.storage)
    assert shell.state("first", *place)["status"] == "SUCCEEDED"
    assert '"run_id": "first"' in shell.call("logs", "first", *place)[0]
    assert kubernetes.names("rayjobs") == ["fire-first"]


def test_all_are_stopped(kubernetes: Cluster, shell: ClusterShell) -> None:
    place = ("--storage", shell.storage)
    shell.call("run", *shell.job(*LONG), "--run-id", "long", "--detach")
    shell.wait_for("long", "RUNNING", *place)
    told = json.loads(shell.call("stop", "--all", *place, "--json")[0])
    assert [each["run"] for each in told["stopped"]] == ["fire/long"]
    assert "RayJobs in the current namespace: 1 runs of this project" in told["looked_at"]
    assert kubernetes.names("rayjobs") == kubernetes.names("pods") == []
    assert shell.state("long", *place)["status"] == "STOPPED"


def test_what_is_missing_is_said_before_anything_is_made(
    kubernetes: Cluster, shell: ClusterShell
) -> None:
    kubernetes.denied = {("create", "rayjobs")}
    _, err = shell.call("run", *shell.job("rayjob.image=null"), code=3)
    assert "image: rayjob.image is required: --set rayjob.image=REGISTRY/emberline:TAG" in err
    assert "permissions: this user may not create rayjobs in jobs" in err
    assert not (shell.folder / "runs" / "fire").exists()
