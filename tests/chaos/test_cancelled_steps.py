"""Steps of a pipeline that are cancelled, deleted or killed: nothing that they started goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ray_jobs.run import Run
from ray_jobs.targets.ray import RayTarget
from ray_jobs.targets.ray_spec import RaySpec
from tests.chaos.step_process import (
    MEMBER,
    REPOSITORY,
    Step,
    prepared,
    reap,
    start_step,
    wait_for_epoch,
    wait_until,
)
from tests.contract.conftest import Cluster as RayCluster
from tests.contract.conftest import token_cluster
from tests.kubernetes_emulator import NAMESPACE, Cluster, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

LONG = f"members={{{MEMBER}: {{epochs: 9999, patience: 9999}}}}"
SHORT = f"members={{{MEMBER}: {{epochs: 2}}}}"
RAYJOB = ("kubeflow.train_on=rayjob", "rayjob.image=emberline:test", "rayjob.stop_wait_s=20")


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes", runs=True) as started:
        monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig()))
        yield started


def in_pod(kubernetes: Cluster, run: Run, tmp_path: Path, name: str = "step-1") -> Step:
    """The step, in a pod that the cluster knows."""
    pod = kubernetes.put_pod(name, **{"pipeline/runid": "pipeline-run-1"})
    return start_step(run, tmp_path / name, pod["metadata"])


def end_pod(kubernetes: Cluster, name: str, phase: str = "Failed") -> None:
    pod = kubernetes.get("pods", name)
    assert pod is not None
    pod["status"] = {
        "phase": phase,
        "containerStatuses": [
            {"state": {"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T00:00:00Z"}}}
        ],
    }


def processes_of(run: Run) -> list[psutil.Process]:
    """Those whose command line names the run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if run.uri in words and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


class TestRayJob:
    """The part of the run is a RayJob of its own."""

    def test_a_cancelled_step_leaves_none(self, kubernetes: Cluster, tmp_path: Path) -> None:
        run = prepared(tmp_path, LONG, *RAYJOB)
        step = in_pod(kubernetes, run, tmp_path)
        wait_for_epoch(run, step)
        assert len(kubernetes.names("rayjobs")) == 1
        step.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stopping" in step.log.read_text(), step.log.read_text)
        for number in (signal.SIGTERM, signal.SIGINT):  # others change nothing
            step.signal(number)
        code, log = step.finish(30)
        assert code == 143, log
        assert "stopped: nothing of it is left running" in log
        assert kubernetes.names("rayjobs") == []
        assert kubernetes.names("pods") == ["step-1"]
        assert processes_of(run) == []

    def test_a_killed_step_is_reaped_once_its_pod_has_ended(
        self, kubernetes: Cluster, tmp_path: Path
    ) -> None:
        run = prepared(tmp_path, LONG, *RAYJOB)
        step = in_pod(kubernetes, run, tmp_path)
        wait_for_epoch(run, step)
        step.signal(signal.SIGKILL)
        assert step.finish()[0] == -signal.SIGKILL
        (name,) = kubernetes.names("rayjobs")
        # Its pod is not known to have ended yet.
        code, told = reap("--grace=0")
        assert (code, told["stopped"], [each["name"] for each in told["left"]]) == (0, [], [name])
        end_pod(kubernetes, "step-1")
        code, told = reap("--grace=0", "--dry-run")
        assert [each["name"] for each in told["would_stop"]] == [name]
        assert kubernetes.names("rayjobs") == [name]
        code, told = reap("--grace=0")
        assert code == 0, told
        assert told["stopped"] == [
            {
                "kind": "rayjob",
                "name": name,
                "owner": f"{NAMESPACE}/step-1",
                "reason": "its pod has ended (Failed)",
            }
        ]
        wait_until(lambda: kubernetes.names("rayjobs") == [] and not processes_of(run))

    def test_another_attempt_attaches_and_owns_it(
        self, kubernetes: Cluster, tmp_path: Path
    ) -> None:
        run = prepared(tmp_path, LONG, *RAYJOB)
        first = in_pod(kubernetes, run, tmp_path)
        wait_for_epoch(run, first)
        first.signal(signal.SIGKILL)
        end_pod(kubernetes, "step-1")
        (name,) = kubernetes.names("rayjobs")
        found = kubernetes.get("rayjobs", name)
        assert found is not None
        second = in_pod(kubernetes, run, tmp_path, "step-2")
        # Its log is that of the job, from its beginning.
        line = f"| [emberline] {MEMBER} epoch 1/"
        wait_until(lambda: line in second.log.read_text(), second.log.read_text, second.process)
        assert kubernetes.get("rayjobs", name) is found
        kubernetes.delete_pod("step-1")  # which does not own it any more
        code, told = reap("--grace=0")
        assert (code, told["stopped"]) == (0, [])
        assert told["left"][0]["owner"] == f"{NAMESPACE}/step-2"
        second.signal(signal.SIGTERM)
        assert second.finish(30)[0] == 143
        assert kubernetes.names("rayjobs") == []

    def test_a_step_that_is_let_be_has_its_result_and_log(
        self, kubernetes: Cluster, tmp_path: Path
    ) -> None:
        run = prepared(tmp_path, SHORT, *RAYJOB)
        step = in_pod(kubernetes, run, tmp_path)
        code, log = step.finish()
        assert code == 0, log
        output = json.loads((tmp_path / "step-1" / "executor_output.json").read_text())
        assert output["parameterValues"] == {"Output": "SUCCEEDED"}
        (name,) = kubernetes.names("rayjobs")
        assert f"member-{MEMBER} of run night is rayjob job {name}" in log
        assert f"| [emberline] {MEMBER} SUCCEEDED: " in log
        assert reap("--grace=0")[1]["left"] == []  # it has ended: it is nobody's burden


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with token_cluster(tmp_path_factory.mktemp("token") / "token") as started:
        yield started


class TestRayCluster:
    """The part of the run is a job of a cluster that others use, too."""

    @pytest.fixture
    def run(self, ray_cluster: RayCluster, tmp_path: Path) -> Run:
        place = (f"ray.address={ray_cluster.address}", f"ray.working_dir={REPOSITORY}")
        return prepared(tmp_path, LONG, *place, "kubeflow.train_on=ray", "ray.stop_wait_s=10")

    def unfinished(self, ray_cluster: RayCluster) -> list[str | None]:
        target = RayTarget(RaySpec(address=ray_cluster.address))
        return [job.submission_id for job in target.unfinished_jobs()]

    def test_a_cancelled_step_leaves_none(
        self, kubernetes: Cluster, ray_cluster: RayCluster, run: Run, tmp_path: Path
    ) -> None:
        step = in_pod(kubernetes, run, tmp_path)
        wait_for_epoch(run, step)
        assert len(self.unfinished(ray_cluster)) == 1
        step.signal(signal.SIGTERM)
        code, log = step.finish(60)
        assert code == 143, log
        assert self.unfinished(ray_cluster) == []

    def test_a_killed_step_is_reaped_once_its_pod_is_gone(
        self, kubernetes: Cluster, ray_cluster: RayCluster, run: Run, tmp_path: Path
    ) -> None:
        address = f"--ray-address={ray_cluster.address}"
        step = in_pod(kubernetes, run, tmp_path)
        wait_for_epoch(run, step)
        step.signal(signal.SIGKILL)
        (name,) = self.unfinished(ray_cluster)
        kubernetes.put_pod("step-2", **{"pipeline/runid": "pipeline-run-1"})
        kubernetes.delete_pod("step-1")
        code, told = reap("--grace=0", address)
        assert (code, told["stopped"]) == (0, [])  # step-2 may be attached to it
        assert told["left"][0]["reason"] == "its pod is gone, but its pipeline's run goes on"
        end_pod(kubernetes, "step-2", "Succeeded")
        kubernetes.code = 503
        code, told = reap("--grace=0", address)
        assert (code, told["stopped"], len(told["failed"])) == (5, [], 2)
        kubernetes.code = 200
        code, told = reap("--grace=0", address)
        assert code == 0, told
        assert [(each["name"], each["reason"]) for each in told["stopped"]] == [
            (name, "its pod is gone")
        ]
        assert self.unfinished(ray_cluster) == []
