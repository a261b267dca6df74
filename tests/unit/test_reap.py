from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_jobs.errors import RetryableError
from ray_jobs.owners import OwnedJob, Owner
from ray_jobs.reap import Pods, main, reap
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.kube import Kube
from ray_jobs.targets.rayjob import RayJobTarget
from ray_jobs.targets.rayjob_spec import RayJobSpec
from tests.kubernetes_emulator import NAMESPACE, Cluster, cluster

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
LONG_AGO = "2026-11-30T11:00:00Z"


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes") as started:
        monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig()))
        yield started


class Service:
    """One that carries out jobs, and remembers which it was asked to stop."""

    def __init__(self, *jobs: OwnedJob, error: RetryableError | None = None):
        self.label = "a service"
        self.stopped: list[str] = []
        self._jobs, self._error = jobs, error

    def owned_jobs(self) -> Iterator[OwnedJob]:
        for job in self._jobs:
            yield replace(job, stop=lambda job=job: self.stopped.append(job.name))
        if self._error:
            raise self._error


def job(
    owner: Owner, *, kind: str = "ray", name: str = "j", made_at: datetime | None = None
) -> OwnedJob:
    made_at = made_at or NOW - timedelta(hours=2)
    return OwnedJob(kind, name, owner, made_at, lambda: None)  # type: ignore[arg-type]


def pods(grace_s: float = 300) -> Pods:
    return Pods([Kube()], grace_s, NOW)


def ended(kubernetes: Cluster, name: str, phase: str, at: str) -> Owner:
    pod = kubernetes.put_pod(name, phase)
    states = [{"state": {"terminated": {"finishedAt": at}}}, {"state": {"running": {}}}, {}]
    pod["status"]["containerStatuses"] = states
    return Owner(NAMESPACE, name, pod["metadata"]["uid"])


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown"])
def test_a_pod_that_is_there_keeps_its_job(kubernetes: Cluster, phase: str) -> None:
    uid = kubernetes.put_pod("step", phase)["metadata"]["uid"]
    verdict = pods().judge(job(Owner(NAMESPACE, "step", uid)))
    assert (verdict.is_orphan, verdict.reason) == (False, "its pod is there")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_keeps_it_for_a_grace(kubernetes: Cluster, phase: str) -> None:
    owner = ended(kubernetes, "step", phase, "2026-11-30T11:56:00Z")
    verdict = pods(300).judge(job(owner))
    assert verdict.reason == f"its pod has ended ({phase}), but not for 300 s yet"
    verdict = pods(200).judge(job(owner))
    assert (verdict.is_orphan, verdict.reason) == (True, f"its pod has ended ({phase})")


def test_a_pod_that_is_gone_keeps_no_job(kubernetes: Cluster) -> None:
    verdict = pods().judge(job(Owner(NAMESPACE, "step", "u")))
    assert (verdict.is_orphan, verdict.reason) == (True, "its pod is gone")


def test_a_job_that_was_made_just_now_is_let_be(kubernetes: Cluster) -> None:
    young = job(Owner(NAMESPACE, "step", "u"), made_at=NOW - timedelta(seconds=299))
    assert pods().judge(young).reason == "its pod is gone, but not for 300 s yet"


def test_another_pod_of_the_name_is_another(kubernetes: Cluster) -> None:
    kubernetes.put_pod("step")
    verdict = pods().judge(job(Owner(NAMESPACE, "step", "its-uid")))
    assert verdict.reason == "its pod is gone; another has its name"
    assert verdict.is_orphan
    assert not pods().judge(job(Owner(NAMESPACE, "step"))).is_orphan  # whose uid is not known


@pytest.mark.parametrize("kind", ["ray", "sagemaker"])
def test_jobs_of_another_cluster_or_namespace_are_let_be(kubernetes: Cluster, kind: str) -> None:
    """They share the service, and their pods cannot be asked for here."""
    other = job(Owner(NAMESPACE, "step", "u", cluster="c0ffee"), kind=kind)
    assert pods().judge(other).reason == "its pod is of another cluster"
    elsewhere = job(Owner("prod", "step", "u"), kind=kind)
    assert pods().judge(elsewhere).reason == "namespace prod is not looked at"


def test_a_ray_job_may_have_passed_to_another_pod_of_the_pipeline(kubernetes: Cluster) -> None:
    owner = Owner(NAMESPACE, "step-1", "u", kfp_run="run-7")
    kubernetes.put_pod("step-2", **{"pipeline/runid": "run-7"})
    verdict = pods().judge(job(owner))
    assert verdict.reason == "its pod is gone, but its pipeline's run goes on"
    assert pods().judge(job(owner, kind="sagemaker")).is_orphan  # its tags tell of the new owner
    kubernetes.put_pod("step-2", "Succeeded", **{"pipeline/runid": "run-7"})
    assert pods().judge(job(owner)).is_orphan


def test_only_orphans_are_stopped_and_an_outage_stops_nothing_else(kubernetes: Cluster) -> None:
    kubernetes.put_pod("there")
    down = Service(error=RetryableError("it does not answer"))
    up = Service(job(Owner(NAMESPACE, "gone", "u")), job(Owner(NAMESPACE, "there"), name="k"))
    found = list(reap([down, up], pods()))
    assert [str(each) for each in found] == [
        "failed: a service: it does not answer",
        "stopped: ray job j of jobs/gone: its pod is gone",
        "left: ray job k of jobs/there: its pod is there",
    ]
    assert up.stopped == ["j"]


def test_a_dry_run_stops_nothing(kubernetes: Cluster) -> None:
    service = Service(job(Owner(NAMESPACE, "gone", "u")))
    (found,) = reap([service], pods(), dry_run=True)
    assert (found.what, service.stopped) == ("would stop", [])


def test_pods_that_cannot_be_asked_for_keep_their_jobs(kubernetes: Cluster) -> None:
    watching = pods()
    kubernetes.code = 500
    service = Service(job(Owner(NAMESPACE, "gone", "u")))
    (found,) = reap([service], watching)
    assert (found.what, service.stopped) == ("failed", [])
    assert "cannot do it now (pod jobs/gone, 500)" in found.reason


def test_the_command(
    kubernetes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path / "runs")), "night")
    settings = RayJobSpec(image="emberline:1")
    RayJobTarget(settings).submit(run)  # by hand: nobody's
    assert main(["--grace", "0"]) == 0
    assert capsys.readouterr().out == "nothing has an owner\n"
    for part in ("train", "sweep"):
        RayJobTarget(settings, part, Owner(NAMESPACE, f"step-{part}", "u")).submit(run)
    kubernetes.put_pod("step-sweep")["metadata"]["uid"] = "u"
    assert main(["--grace=0", "--json", "--ray-address=http://127.0.0.1:9"]) == 5
    told = json.loads(capsys.readouterr().out)
    assert told["looked_at"] == ["RayJobs in jobs", "Ray cluster http://127.0.0.1:9"]
    (stopped,), (left,), (failed,) = told["stopped"], told["left"], told["failed"]
    assert (stopped["owner"], stopped["reason"]) == ("jobs/step-train", "its pod is gone")
    assert left["owner"] == "jobs/step-sweep"
    assert failed["kind"] == "Ray cluster http://127.0.0.1:9"
    assert told["would_stop"] == []
