from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import PreflightError, RetryableError, SpecError
from ray_jobs.owners import Owner
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.kube import Kube
from ray_jobs.targets.rayjob import RayJobTarget
from ray_jobs.targets.rayjob_spec import RayJobSpec
from tests.kubernetes_emulator import NAMESPACE, Cluster, cluster

NAME = "fire-night"


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes") as started:
        monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig()))
        yield started


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(load_spec("fire", storage=str(tmp_path / "runs")), "night")


def target(owner: Owner | None = None, **settings: Any) -> RayJobTarget:
    return RayJobTarget(RayJobSpec(**{"image": "emberline:1", **settings}), owner=owner)


def set_status(kubernetes: Cluster, deployment: str, job: str = "", **fields: Any) -> None:
    found = kubernetes.get("rayjobs", NAME)
    assert found is not None
    found["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **fields}


def test_a_run_is_submitted_once(kubernetes: Cluster, run: Run) -> None:
    there = target()
    assert there.status(there.handle(run)).is_submitted is False
    handle = there.submit(run)
    assert target().submit(run) == handle
    assert (handle.name, kubernetes.names("rayjobs")) == (NAME, [NAME])
    assert sum(line.startswith("POST") for line in kubernetes.requests) == 1
    assert target().status(handle).status == "PENDING"
    assert target().list() == [handle]


def test_the_list_has_every_page_and_no_part_of_a_run(kubernetes: Cluster, tmp_path: Path) -> None:
    spec = load_spec("fire", storage=str(tmp_path / "runs"))
    handles = [target().submit(Run.create(spec, f"run-{number}")) for number in range(5)]
    RayJobTarget(RayJobSpec(image="emberline:1"), "train").submit(Run.create(spec, "run-1"))
    assert len(kubernetes.names("rayjobs")) == 6
    assert sorted(target().list(), key=str) == sorted(handles, key=str)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"deployment": "Running", "job": "RUNNING"}, ("RUNNING", None, False)),
        ({"deployment": "Retrying"}, ("PENDING", None, False)),
        ({"deployment": "Complete", "job": "STOPPED"}, ("STOPPED", "it was stopped", False)),
        (
            {"deployment": "Failed", "reason": "AppFailed",
             "message": "command failed with exit code 2, last\nerror: no such key"},
            ("FAILED", "AppFailed: no such key", False),
        ),
        (
            {"deployment": "Failed", "reason": "AppFailed",
             "message": "command failed with exit code 5, last\nerror: no network"},
            ("FAILED", "AppFailed: no network", True),
        ),
        (
            {"deployment": "Failed", "reason": "AppFailed",
             "message": "command failed with exit code -9. No logs available."},
            ("FAILED", "AppFailed: command failed with exit code -9. No logs available.", True),
        ),
        (
            {"deployment": "Failed", "reason": "AppFailed",
             "message": "command failed with exit code 130, last"},
            ("STOPPED", "it was stopped", False),
        ),
        (
            {"deployment": "Failed", "reason": "DeadlineExceeded"},
            ("FAILED", "it was not done within rayjob.max_run_s=86400; set it higher and submit "
             "the run again: it goes on where it ended", False),
        ),
        (
            {"deployment": "Failed", "reason": "PreRunningDeadlineExceeded"},
            ("FAILED", "its pods did not run within rayjob.start_s=1800; look why with kubectl "
             f"describe pods -n {NAMESPACE} -l emberline/rayjob={NAME}", True),
        ),
        (
            {"deployment": "Failed", "reason": "SubmissionFailed"},
            ("FAILED", "SubmissionFailed", True),
        ),
        (
            {"deployment": "Complete", "job": "SUCCEEDED"},
            ("FAILED", "the job ended without a result in {folder}", False),
        ),
        (
            {"deployment": "Asleep"},
            ("FAILED", "the Kubernetes API says of it what no KubeRay of this version would: "
             "jobDeploymentStatus 'Asleep' with jobStatus ''", False),
        ),
    ],
)  # fmt: skip
def test_its_state_is_what_kuberay_and_the_run_say(
    kubernetes: Cluster, run: Run, fields: dict[str, str], expected: tuple[str, str | None, bool]
) -> None:
    there = target()
    handle = there.submit(run)
    set_status(kubernetes, **fields)
    state = there.status(handle)
    reason = expected[1] and expected[1].format(folder=run.storage.display(run.folder))
    assert (state.status, state.reason, state.may_be_retried) == (expected[0], reason, expected[2])


def test_what_cannot_be_read_is_not_submitted_again(kubernetes: Cluster, run: Run) -> None:
    there = target()
    there.submit(run)
    set_status(kubernetes, "Asleep")
    with pytest.raises(RetryableError, match="RayJob fire-night: the Kubernetes API says of it"):
        there.submit(run)


def test_one_that_failed_makes_room_for_another(kubernetes: Cluster, run: Run) -> None:
    there = target()
    there.submit(run)
    set_status(kubernetes, "Failed", reason="AppFailed")
    first = kubernetes.get("rayjobs", NAME)
    there.submit(run)
    second = kubernetes.get("rayjobs", NAME)
    assert first is not None
    assert second is not None
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_a_rayjob_that_was_deleted_is_a_failure_that_a_retry_mends(
    kubernetes: Cluster, run: Run
) -> None:
    there = target()
    handle = there.submit(run)
    with kubernetes.lock:
        del kubernetes.objects["rayjobs", NAMESPACE, NAME]
    state = there.status(handle)
    assert (state.status, state.may_be_retried) == ("FAILED", True)
    assert state.reason == (
        f"there is no RayJob {NAME} in {NAMESPACE} any more: it, or the pod that owned it, was "
        "deleted; submit the run again to go on where it ended"
    )


def test_a_stop_waits_for_the_pods(kubernetes: Cluster, run: Run) -> None:
    there = target(stop_wait_s=1)
    handle = there.submit(run)
    kubernetes.put_pod("head", **{"emberline/rayjob": NAME})
    there.stop(handle)
    assert kubernetes.names("rayjobs") == kubernetes.names("pods") == []
    assert there.status(handle).status == "STOPPED"
    there.stop(handle)  # a second one changes nothing


def test_a_stop_that_leaves_pods_says_so(
    kubernetes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.targets.rayjob._AFTER_DELETE_S", 0.1)
    monkeypatch.setattr(kubernetes, "delete_rayjob", lambda name: None)  # no operator is up
    there = target(stop_wait_s=1)
    handle = there.submit(run)
    with pytest.raises(
        RetryableError,
        match=re.escape(
            "run 'night': RayJob fire-night is deleted, but not gone (itself); look whether "
            "KubeRay's operator is up, and stop the run again"
        ),
    ):
        there.stop(handle)


def test_a_stop_leaves_one_that_has_ended(kubernetes: Cluster, run: Run) -> None:
    there = target()
    handle = there.submit(run)
    set_status(kubernetes, "Complete", "SUCCEEDED")
    there.stop(handle)
    assert kubernetes.names("rayjobs") == [NAME]


def test_a_network_is_asked_for_a_checkpoint_first(kubernetes: Cluster, tmp_path: Path) -> None:
    run = Run.create(load_spec("waste", storage=str(tmp_path / "runs")), "night")
    there = target(stop_wait_s=20)
    handle = there.submit(run)
    found = kubernetes.get("rayjobs", handle.name)
    assert found is not None
    found["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    seen = []

    def end_with_a_checkpoint() -> None:
        while not run.is_stop_requested():
            threading.Event().wait(0.01)
        seen.append(kubernetes.get("rayjobs", handle.name) is found)
        found["status"] |= {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}

    thread = threading.Thread(target=end_with_a_checkpoint)
    thread.start()
    there.stop(handle)
    thread.join()
    assert seen == [True]  # it was still there when it was asked
    assert kubernetes.names("rayjobs") == []


def test_a_step_that_attaches_becomes_the_owner(kubernetes: Cluster, run: Run) -> None:
    target(owner=Owner(NAMESPACE, "step-1", "uid-1", kfp_run="run-1")).submit(run)
    target().submit(run)  # of nobody: the owner stays
    found = kubernetes.get("rayjobs", NAME)
    assert found is not None
    assert found["metadata"]["annotations"]["emberline/owner-pod"] == "step-1"
    target(owner=Owner(NAMESPACE, "step-2", "uid-2")).submit(run)
    metadata = found["metadata"]
    assert metadata["annotations"]["emberline/owner-pod"] == "step-2"
    assert metadata["labels"]["emberline/owner-uid"] == "uid-2"
    assert "emberline/kfp-run" not in metadata["labels"]
    assert [each["uid"] for each in metadata["ownerReferences"]] == ["uid-2"]


def test_the_log_is_that_of_the_newest_submitter(
    kubernetes: Cluster, run: Run, tmp_path: Path
) -> None:
    there = target()
    handle = there.submit(run)
    assert list(there.logs(handle)) == []
    log = tmp_path / "log"
    log.write_bytes("one\ntwo ü\nrest".encode())
    labels = {"emberline/rayjob": NAME, "emberline/role": "submitter"}
    old = kubernetes.put_pod("s-1", "Failed", **labels)
    old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    kubernetes.put_pod("s-2", "Succeeded", **labels)["log"] = str(log)
    assert list(there.logs(handle)) == ["one", "two ü", "rest"]
    set_status(kubernetes, "Complete", "SUCCEEDED")
    assert list(there.logs(handle, follow=True)) == ["one", "two ü", "rest"]


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (401, PreflightError, "does not know this user; sign in again, or set KUBECONFIG"),
        (403, PreflightError, "forbids it (RayJobs): answer 403; have a Role in jobs allow it"),
        (429, RetryableError, "cannot do it now (RayJobs, 429): answer 429"),
        (500, RetryableError, "cannot do it now (RayJobs, 500): answer 500"),
        (400, PreflightError, "refuses RayJobs: answer 400"),
    ],
)
def test_a_refusal_is_told_from_a_failure(
    kubernetes: Cluster, code: int, error: type[Exception], words: str
) -> None:
    kubernetes.code = code
    message = f"the Kubernetes API at {kubernetes.url} {words}"
    with pytest.raises(error, match=re.escape(message)):
        target().list()


def test_nobody_at_the_address(kubernetes: Cluster) -> None:
    url = kubernetes.url
    kubernetes.shutdown()
    kubernetes.server_close()
    with pytest.raises(
        RetryableError, match=f"the Kubernetes API at {url} does not answer .*; look whether it is"
    ):
        target().list()


def test_no_cluster_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(PreflightError, match=r"^no Kubernetes cluster is named .*set KUBECONFIG"):
        target().list()


def test_a_context_that_is_not_there_is_named(kubernetes: Cluster) -> None:
    with pytest.raises(SpecError, match=r"^rayjob\.context=moon: "):
        Kube("moon").rayjobs("")


def test_the_checks_pass_and_nothing_is_made(kubernetes: Cluster, tmp_path: Path) -> None:
    kubernetes.put("secrets", "aws", {})
    kubernetes.put("persistentvolumeclaims", "runs", {})
    spec = load_spec("fire", storage=str(tmp_path / "runs"))
    there = target(
        volumes={"runs": str(tmp_path)}, secrets={"A_KEY": {"secret": "aws", "key": "k"}}
    )
    checklist = there.check(spec)
    assert [(check.name, check.found) for check in checklist.failed] == []
    assert "RayJob" in [check.name for check in checklist.checks]
    assert kubernetes.names("rayjobs") == []


def test_the_checks_name_what_is_missing(kubernetes: Cluster, tmp_path: Path) -> None:
    kubernetes.denied = {("create", "rayjobs"), ("get", "pods"), ("get", "persistentvolumeclaims")}
    kubernetes.denied.add(("get", "crd"))
    spec = load_spec("fire", storage=str(tmp_path / "runs"))
    there = RayJobTarget(
        RayJobSpec(volumes={"runs": "/elsewhere"}, secrets={"A_KEY": {"secret": "aws", "key": "k"}})
    )
    checklist = there.check(spec)
    found = {check.name: check.found for check in checklist.failed}
    assert set(found) == {"image", "KubeRay", "permissions", "secret aws", "shared storage"}
    assert found["permissions"] == (
        "this user may not create rayjobs, get pods/log in jobs; have a Role there allow it, or "
        "set rayjob.namespace to another"
    )
    assert found["secret aws"] == "jobs has none of this name"
    assert found["KubeRay"].startswith("the cluster knows no RayJobs (ray.io/v1); install KubeRay")
    assert found["shared storage"] == (
        f"{tmp_path / 'runs'} is in no volume of the pods; give --storage s3://BUCKET/PREFIX, or "
        "mount the same volume here and there: rayjob.volumes.CLAIM=/FOLDER"
    )
    unknown = {check.name: check.found for check in checklist.checks if check.passed is None}
    assert unknown["claim runs"] == "not known: this user may not look"


def test_a_server_that_is_down_fails_its_check_alone(kubernetes: Cluster, tmp_path: Path) -> None:
    kubernetes.code = 503
    checklist = target().check(load_spec("fire", storage=str(tmp_path / "runs")))
    assert [check.name for check in checklist.failed] == ["Kubernetes", "shared storage"]


def test_a_handle_is_found_from_another_process(kubernetes: Cluster, run: Run) -> None:
    handle = target().submit(run)
    assert target().handle(run) == handle
    with pytest.raises(SpecError, match="no run 'other'"):
        target().status(replace(handle, run_id="other"))
