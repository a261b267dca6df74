"""`helm install`, `upgrade`, `rollback`, `test` and `uninstall`, as the API server and the
controllers judge them, in a namespace that enforces Pod Security `restricted`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api import Api, Object, until
from tests.cluster.fake_nodes import FakeNodes
from tests.cluster.helm import RELEASES, VALUE_SETS, Helm, values_of

_RELEASE = "rel"
_LABEL = {"app.kubernetes.io/instance": _RELEASE}
_CLAIM = "PersistentVolumeClaim"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_a_value_set_is_installed_and_gone_again(
    values: str, helm: Helm, api: Api, namespace: str
) -> None:
    helm.install(_RELEASE, namespace, values)
    rendered = helm.template(_RELEASE, namespace, values)
    objects = [item for item in rendered if "helm.sh/hook" not in _annotations(item)]
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    assert names <= api.labelled(namespace, **_LABEL)
    _assert_every_pod_was_made(api, namespace, objects)
    for pod in api.list("Pod", namespace, **_LABEL):
        assert _unresolved(api, namespace, pod) == []

    helm("uninstall", _RELEASE, "--namespace", namespace, "--wait")
    claims = {each for each in api.labelled(namespace, **_LABEL) if each[0] == _CLAIM}
    until(lambda: api.labelled(namespace, **_LABEL) == claims, "only the claims are left")
    assert {name for _, name in claims} == _data_of(objects)


@pytest.mark.parametrize("values", ["default", "everything", "retrain", "pinned", "gateway"])
def test_the_last_release_is_upgraded_and_rolled_back(
    values: str, helm: Helm, api: Api, namespace: str, tmp_path: Path
) -> None:
    helm.install(_RELEASE, namespace, _known(values, helm, tmp_path), _last_release())
    before = api.labelled(namespace, **_LABEL)
    claims = _uids(api, namespace)
    helm.upgrade(_RELEASE, namespace, values)
    objects = helm.template(_RELEASE, namespace, values)
    _assert_every_pod_was_made(api, namespace, objects)
    assert _uids(api, namespace) == claims  # the data are those of before

    helm("rollback", _RELEASE, "1", "--namespace", namespace, "--wait")
    lasting = {each for each in before if each[0] in ("Deployment", "StatefulSet", "Service")}
    assert lasting <= api.labelled(namespace, **_LABEL)
    assert _uids(api, namespace) == claims
    helm("uninstall", _RELEASE, "--namespace", namespace, "--wait")


def test_a_release_that_is_installed_again_finds_its_data(
    helm: Helm, api: Api, namespace: str
) -> None:
    helm.install(_RELEASE, namespace, "default")
    claims = _uids(api, namespace)
    assert claims
    helm("uninstall", _RELEASE, "--namespace", namespace, "--wait")
    helm.install(_RELEASE, namespace, "default")
    assert _uids(api, namespace) == claims


def test_two_releases_share_a_namespace(helm: Helm, api: Api, namespace: str) -> None:
    helm.install("one", namespace, "retrain")
    helm.install("two", namespace, "retrain")
    helm("uninstall", "one", "--namespace", namespace, "--wait")
    for pod in api.list("Pod", namespace, **{"app.kubernetes.io/instance": "two"}):
        assert "deletionTimestamp" not in pod["metadata"]


@pytest.mark.parametrize(("exit_code", "said"), [(0, "Phase:          Succeeded"), (1, "Failed")])
def test_helm_test_says_how_the_smoke_job_ended(
    exit_code: int, said: str, helm: Helm, api: Api, nodes: FakeNodes, namespace: str
) -> None:
    helm.install(_RELEASE, namespace, "default")
    with helm.started("test", _RELEASE, "--namespace", namespace, "--timeout=100s") as process:
        pod = until(lambda: _running(api, namespace), "the smoke job has a pod")
        nodes.finish(namespace, pod["metadata"]["name"], exit_code)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == exit_code, stderr
    assert said in stdout + stderr


def test_a_retraining_job_of_the_cron_job_gets_its_pod(
    helm: Helm, api: Api, nodes: FakeNodes, namespace: str
) -> None:
    """And ends for good at a code that waiting does not mend, but tries again after others."""
    helm.install(_RELEASE, namespace, "retrain")
    cron_jobs = api.list("CronJob", namespace, **_LABEL)
    assert cron_jobs
    for cron_job in cron_jobs:
        template = cron_job["spec"]["jobTemplate"]
        name = cron_job["metadata"]["name"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "spec": template["spec"]}
        for code, pods in ((5, 2), (4, 1)):
            made = f"{name}-{code}"
            metadata = {"name": made, "labels": template["metadata"]["labels"]}
            api.create(job | {"metadata": metadata}, namespace)
            first = until(lambda job=made: _running(api, namespace, job), f"{made} has a pod")
            nodes.finish(namespace, first["metadata"]["name"], code)
            if pods == 2:
                again = until(
                    lambda job=made: _running(api, namespace, job), f"{made} has another pod"
                )
                assert again["metadata"]["name"] != first["metadata"]["name"]
            else:
                until(lambda job=made: _has_failed(api, namespace, job), f"{made} has failed")


# Releases


def _last_release() -> Path:
    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in path.stem.removeprefix("emberline-").split("."))

    return max(RELEASES.glob("emberline-*.tgz"), key=version)


def _known(name: str, helm: Helm, folder: Path) -> Path:
    """A value set without the keys that the last release did not have yet."""
    known = yaml.safe_load(helm("show", "values", str(_last_release())))
    kept: dict[str, Any] = {}
    for section, given in values_of(name).items():
        if isinstance(given, dict) and known.get(section):
            kept[section] = {key: each for key, each in given.items() if key in known[section]}
        elif section in known:
            kept[section] = given
    path = folder / "known.yaml"
    path.write_text(yaml.safe_dump(kept))
    return path


def _data_of(objects: list[Object]) -> set[str]:
    """Claims that outlive a release, since data are in them: MLflow's and its database's."""
    kept = {item["metadata"]["name"] for item in objects if item["kind"] == _CLAIM}
    databases = [item["metadata"]["name"] for item in objects if item["kind"] == "StatefulSet"]
    return kept | {f"data-{name}-0" for name in databases}


# What Kubernetes made of it


def _assert_every_pod_was_made(api: Api, namespace: str, objects: list[Object]) -> None:
    """Each Deployment and StatefulSet has all its pods, ready, and no controller was refused."""
    for item in objects:
        kind, name = item["kind"], item["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet"):
            found = api.get(kind, name, namespace)
            assert found["status"]["readyReplicas"] == found["spec"]["replicas"], name
            assert found["status"]["updatedReplicas"] == found["spec"]["replicas"], name
    refused = [
        event["message"]
        for event in api.list("Event", namespace)
        if event["reason"] in ("FailedCreate", "FailedScheduling")
        and event["involvedObject"]["kind"] != "Pod"
    ]
    assert refused == []


def _unresolved(api: Api, namespace: str, pod: Object) -> list[str]:
    """Secrets, keys and ConfigMaps of the pod that a kubelet would not find."""
    secrets: list[tuple[str, str | None]] = []
    maps = []
    for container in pod["spec"]["containers"]:
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            if source:
                secrets.append((source["name"], source["key"]))
    for volume in pod["spec"]["volumes"]:
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            secrets += [(name, each["key"]) for each in volume["secret"].get("items", [])]
        if "configMap" in volume:
            maps.append(volume["configMap"]["name"])
    secrets += [(each["name"], None) for each in pod["spec"].get("imagePullSecrets", [])]
    missing = [name for name in maps if not api.is_there("ConfigMap", name, namespace)]
    for name, key in secrets:
        if not api.is_there("Secret", name, namespace):
            missing.append(name)
        elif key and key not in api.get("Secret", name, namespace)["data"]:
            missing.append(f"{name}: {key}")
    return missing


def _running(api: Api, namespace: str, job: str = "rel-emberline-smoke") -> Object | None:
    pods = api.list("Pod", namespace, **{"batch.kubernetes.io/job-name": job})
    return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)


def _has_failed(api: Api, namespace: str, job: str) -> bool:
    conditions = api.get("Job", job, namespace)["status"].get("conditions", [])
    return any(each["type"] == "Failed" and each["status"] == "True" for each in conditions)


def _uids(api: Api, namespace: str) -> dict[str, str]:
    claims = api.list(_CLAIM, namespace)
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in claims}


def _annotations(item: Object) -> dict[str, Any]:
    return item["metadata"].get("annotations", {})
