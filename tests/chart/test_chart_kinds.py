"""Every object is one that Kubernetes, KubeRay and the other operators take."""

from __future__ import annotations

import copy
import json
from functools import cache

import jsonschema
import kubernetes_validate
import pytest
from rendered_chart import OLDEST, VALUE_SETS, Object, each_set, objects, of_kind

from tests.kuberay_schemas import crd_schema

NEWEST = "1.37"  # that the validator knows


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_object(version: str) -> None:
    for kind, item in _distinct_objects():
        if kind not in _CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_validator_of_objects_refuses_what_kubernetes_does() -> None:
    broken = copy.deepcopy(of_kind(objects("default"), "Deployment")[0])
    broken["spec"]["template"]["spec"]["containers"][0]["comand"] = ["mlflow"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


# Custom resources

# What the chart uses of each, where no schema of theirs is at hand. Sources: the API references of
# the Prometheus operator, of Gateway API v1 and of KubeRay's ray.io/v1.
_CUSTOM: dict[str, set[str]] = {
    "ServiceMonitor": {"selector", "targetLabels", "podTargetLabels", "endpoints"},
    "PodMonitor": {"selector", "podTargetLabels", "podMetricsEndpoints"},
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
    "RayCluster": {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions",
        "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs",
    },
}  # fmt: skip


def test_custom_resources_have_the_fields_of_their_kinds() -> None:
    found = set()
    for kind, item in _distinct_objects():
        if kind in _CUSTOM:
            assert set(item["spec"]) <= _CUSTOM[kind], item["metadata"]["name"]
            found.add(kind)
    assert found == set(_CUSTOM)


def test_kuberays_schema_takes_every_raycluster() -> None:
    validator = jsonschema.Draft202012Validator(crd_schema("rayclusters"))
    clusters = [item for kind, item in _distinct_objects() if kind == "RayCluster"]
    for cluster in clusters:
        validator.validate(cluster)
    assert len(clusters) >= 4
    misspelt = copy.deepcopy(clusters[0])
    misspelt["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagePulPolicy"):
        validator.validate(misspelt)


@each_set
def test_rayclusters_are_as_kuberay_asks(name: str) -> None:
    """What its operator checks beside the schema: ray-operator's ValidateRayClusterSpec, v1.7."""
    for cluster in of_kind(objects(name), "RayCluster"):
        spec = cluster["spec"]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        assert spec["authOptions"]["mode"] == "token"
        assert len(cluster["metadata"]["name"]) <= 50
        for group in groups:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            restarts = group["template"]["spec"].get("restartPolicy")
            assert restarts == ("Never" if spec.get("enableInTreeAutoscaling") else None)
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        if "gcsFaultToleranceOptions" in spec:
            assert set(spec["gcsFaultToleranceOptions"]["redisPassword"]) == {"valueFrom"}


def test_gpus_start_from_no_pod_on_nodes_that_have_them() -> None:
    [cluster] = of_kind(objects("ray-gpu"), "RayCluster")
    gpu = next(each for each in cluster["spec"]["workerGroupSpecs"] if each["groupName"] == "gpu")
    pod = gpu["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (0, 0, 8)
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
        pod["tolerations"]
    )
    assert pod["containers"][0]["image"].endswith(":0.1.0-cuda")


# Helpers


@cache
def _distinct_objects() -> list[tuple[str, Object]]:
    """Those of all sets, each once; one of another name or label alone is no other."""
    found = {
        json.dumps(item | {"metadata": sorted(item["metadata"])}, sort_keys=True): item
        for name in VALUE_SETS
        for item in objects(name)
    }
    return [(item["kind"], item) for item in found.values()]
