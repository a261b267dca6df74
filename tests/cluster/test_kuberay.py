"""KubeRay's real operator: what it makes of the chart's RayCluster and of a step's RayJob."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ray_jobs.targets.rayjob_manifest import RayJob
from ray_jobs.targets.rayjob_spec import RayJobSpec
from tests.cluster import kuberay
from tests.cluster.api import Api, Object, until
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fake_nodes import FakeNodes
from tests.cluster.helm import Helm
from tests.cluster.processes import Process
from tests.go_tools import TOOLS, module_folder, tool_or_skip

_CLUSTER = "rel-emberline-ray"
_NODE_TYPE = "ray.io/node-type"


@pytest.fixture(scope="module", autouse=True)
def operator(cluster: ControlPlane, api: Api, nodes: FakeNodes) -> Iterator[Process]:
    source = TOOLS["ray-operator"]
    program = tool_or_skip("ray-operator")
    sources = module_folder(source.module, source.version)
    with kuberay.operator(program, sources, cluster, api) as process:
        yield process


# The chart's RayCluster


def test_the_charts_cluster_gets_its_head(helm: Helm, api: Api, namespace: str) -> None:
    """With the autoscaler beside it, a token, and the right to scale its own cluster only."""
    helm.install("rel", namespace, "retrain")
    until(lambda: _state(api, namespace) == "ready", "the RayCluster is ready")
    [head] = _pods(api, namespace)
    assert head["metadata"]["labels"][_NODE_TYPE] == "head"
    assert [each["name"] for each in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    assert head["spec"]["serviceAccountName"] == "rel-emberline-ray"
    assert _variables(head)["RAY_AUTH_MODE"]["value"] == "token"
    source = _variables(head)["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert (source["name"], source["key"]) == (_CLUSTER, "auth_token")
    assert list(api.get("Secret", _CLUSTER, namespace)["data"]) == ["auth_token"]
    assert api.is_there("Service", f"{_CLUSTER}-head-svc", namespace)
    _assert_nothing_was_refused(api, namespace)

    helm("uninstall", "rel", "--namespace", namespace)
    until(lambda: not _made(api, namespace), "what the operator made is gone with the RayCluster")


def test_a_group_of_a_fixed_size_has_its_workers(helm: Helm, api: Api, namespace: str) -> None:
    helm.install("rel", namespace, "kueue")
    until(lambda: _state(api, namespace) == "ready", "the RayCluster is ready")
    groups = [each["metadata"]["labels"]["ray.io/group"] for each in _pods(api, namespace)]
    assert sorted(groups) == ["fixed", "fixed", "headgroup"]
    [worker, _] = _pods(api, namespace, "worker")
    [waits] = worker["spec"]["initContainers"]
    assert waits["securityContext"]["readOnlyRootFilesystem"] is True
    _assert_nothing_was_refused(api, namespace)


def test_gpus_are_scaled_from_none_by_the_autoscalers_own_account(
    helm: Helm, api: Api, plane: ControlPlane, namespace: str
) -> None:
    """What autoscaler v2 asks of the API server, with the token that its pod has."""
    helm.install("rel", namespace, "ray-gpu")
    until(lambda: _state(api, namespace) == "ready", "the RayCluster is ready")
    assert _pods(api, namespace, "worker") == []
    [head] = _pods(api, namespace)
    redis = _variables(head)["RAY_REDIS_ADDRESS"]["value"]
    assert redis == "rediss://redis.redis.svc:6379"

    mine = api.of(plane.client_of(api.token(head["spec"]["serviceAccountName"], namespace)))
    groups = mine.get("RayCluster", _CLUSTER, namespace)["spec"]["workerGroupSpecs"]
    for group in groups:
        group["replicas"] = int(group["groupName"] == "gpu")
    mine.patch("RayCluster", _CLUSTER, {"spec": {"workerGroupSpecs": groups}}, namespace)
    worker = until(lambda: _running(mine, namespace, "worker"), "the GPU worker runs")
    assert worker["spec"]["nodeName"] == "gpu"
    assert worker["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    _assert_nothing_was_refused(api, namespace)


# A step's RayJob


def test_a_steps_job_becomes_a_cluster_and_a_submitter(api: Api, namespace: str) -> None:
    """And all of it goes when the RayJob is deleted."""
    api.create(_job().manifest(namespace), namespace)
    submitter = until(lambda: _submitter(api, namespace), "the submitter runs", 90)
    pods = [each["metadata"]["labels"][_NODE_TYPE] for each in _pods(api, namespace)]
    assert sorted(pods) == ["head", "worker", "worker"]
    words = " ".join(submitter["spec"]["containers"][0]["command"])
    args = " ".join(submitter["spec"]["containers"][0].get("args", []))
    assert "python -m ray_jobs.train --spec s3://runs/spec.yaml" in f"{words} {args}"
    [cluster] = api.list("RayCluster", namespace)
    [owner] = cluster["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("RayJob", "step")
    assert api.get("RayJob", "step", namespace)["status"]["jobDeploymentStatus"] == "Running"
    _assert_nothing_was_refused(api, namespace)

    api.delete("RayJob", "step", namespace, propagationPolicy="Background")
    until(lambda: not api.is_there("RayJob", "step", namespace), "the RayJob is gone")
    until(lambda: not _made(api, namespace), "what it has made is gone")


def test_a_job_that_cannot_be_submitted_fails_and_frees_its_pods(
    api: Api, nodes: FakeNodes, namespace: str
) -> None:
    """Each submission ends with an error; so does, after its retries, the RayJob."""
    job = _job(num_submissions=2, keep_s=1)
    api.create(job.manifest(namespace), namespace)
    seen: set[str] = set()

    def failed() -> bool:
        for pod in _submitters(api, namespace):
            name = pod["metadata"]["name"]
            if name not in seen and pod["status"]["phase"] == "Running":
                nodes.finish(namespace, name, exit_code=1)
                seen.add(name)
        return _deployment(api, namespace) == "Failed"

    until(failed, "the RayJob has failed", 150)
    status = api.get("RayJob", "step", namespace)["status"]
    assert status["reason"] == "SubmissionFailed"
    assert len(seen) == 2 * (1 + job.settings.num_retries)
    until(lambda: not _pods(api, namespace), "its pods are freed though the RayJob is kept")
    assert api.is_there("RayJob", "step", namespace)


def test_a_job_that_does_not_start_in_time_fails(api: Api, namespace: str) -> None:
    never = {"nobody.example.com/has": "it"}
    job = _job(start_s=5, num_retries=1, workers={"node_selector": never})
    api.create(job.manifest(namespace), namespace)
    until(lambda: _deployment(api, namespace) == "Failed", "the RayJob has failed", 90)
    status = api.get("RayJob", "step", namespace)["status"]
    assert status["reason"] in ("PreRunningDeadlineExceeded", "DeadlineExceeded")


def test_a_job_goes_with_the_pod_of_its_step(api: Api, namespace: str) -> None:
    """By Kubernetes' own garbage collector: nobody has to be there to stop it."""
    from ray_jobs.owners import Owner

    pod = api.create(_step_pod(), namespace)
    owner = Owner(pod="train-step", uid=pod["metadata"]["uid"], namespace=namespace)
    api.create(_job(owner=owner).manifest(namespace), namespace)
    until(lambda: _pods(api, namespace), "the RayJob has pods")
    api.delete("Pod", "train-step", namespace)
    until(lambda: not api.is_there("RayJob", "step", namespace), "the RayJob is gone", 90)
    until(lambda: not _made(api, namespace), "what it has made is gone")


# Helpers


def _job(owner: Any = None, **settings: Any) -> RayJob:
    spec = RayJobSpec(**{"image": "emberline:0.1.0", "num_workers": 2} | settings)
    command = ["python", "-m", "ray_jobs.train", "--spec", "s3://runs/spec.yaml"]
    return RayJob(
        name="step", command=command, settings=spec, identity={}, environment={}, owner=owner
    )


def _step_pod() -> Object:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "emberline:0.1.0", "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "train-step"},
        "spec": {"containers": [container]},
    }


def _state(api: Api, namespace: str) -> str | None:
    [cluster] = api.list("RayCluster", namespace)
    return cluster.get("status", {}).get("state")


def _deployment(api: Api, namespace: str) -> str | None:
    return api.get("RayJob", "step", namespace).get("status", {}).get("jobDeploymentStatus")


def _pods(api: Api, namespace: str, role: str | None = None) -> list[Object]:
    """Of Ray: heads and workers."""
    wanted = {"ray.io/is-ray-node": "yes"} | ({_NODE_TYPE: role} if role else {})
    return api.list("Pod", namespace, **wanted)


def _running(api: Api, namespace: str, role: str) -> Object | None:
    pods = _pods(api, namespace, role)
    return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)


def _submitters(api: Api, namespace: str) -> list[Object]:
    jobs = {each["metadata"]["name"] for each in api.list("Job", namespace)}
    pods = api.list("Pod", namespace)
    return [
        pod
        for pod in pods
        if pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name") in jobs
    ]


def _submitter(api: Api, namespace: str) -> Object | None:
    pods = _submitters(api, namespace)
    return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)


def _made(api: Api, namespace: str) -> list[str]:
    """What the operator makes, for a RayCluster or a RayJob."""
    kinds = ("RayCluster", "Job", "Pod", "Service", "Role", "RoleBinding")
    labelled = [
        f"{kind}/{each['metadata']['name']}"
        for kind in kinds
        for each in api.list(kind, namespace)
        if any(key.startswith("ray.io/") for key in each["metadata"].get("labels", {}))
    ]
    return labelled


def _variables(pod: Object) -> dict[str, Object]:
    return {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}


def _assert_nothing_was_refused(api: Api, namespace: str) -> None:
    """By admission, or by what the operator holds against the object. It may make an object twice,
    as its cache has not seen the first yet."""
    refused = [
        f"{event['reason']}: {event['message']}"
        for event in api.list("Event", namespace)
        if event["type"] == "Warning"
        and not event["message"].endswith("already exists")
        and event["involvedObject"]["kind"] in ("RayCluster", "RayJob", "Job")
    ]
    assert refused == []
