"""What the API server takes and refuses: schemas of all kinds, KubeRay's rules, Pod Security."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.cluster.api import Api, Object, Refused
from tests.cluster.helm import VALUE_SETS, Helm


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_object_is_taken_as_it_is_written(
    values: str, helm: Helm, api: Api, namespace: str
) -> None:
    """No field is unknown or stands twice, and none is out of its bounds; KubeRay's too."""
    for item in helm.template("rel", namespace, values):
        api.create(item, namespace, dryRun="All", fieldValidation="Strict")


def test_a_field_that_no_kind_has_is_refused(api: Api, helm: Helm, namespace: str) -> None:
    [policy, *_] = _of_kind(helm.template("rel", namespace, "default"), "NetworkPolicy")
    policy["spec"]["engress"] = []
    with pytest.raises(Refused, match=r'unknown field "spec\.engress"'):
        api.create(policy, namespace, dryRun="All", fieldValidation="Strict")


def test_network_policies_are_kept_as_they_were_written(
    api: Api, helm: Helm, namespace: str
) -> None:
    policies = _of_kind(helm.template("rel", namespace, "everything"), "NetworkPolicy")
    assert policies
    for policy in policies:
        kept = api.create(policy, namespace)["spec"]
        for key, value in policy["spec"].items():
            assert kept[key] == value or (not value and key == "podSelector"), key


# KubeRay's own rules

_STRATEGY = "deletionStrategy"
_SELF, _NONE = {"policy": "DeleteSelf"}, {"policy": "DeleteNone"}
_RULE = {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}
_RULES: list[tuple[str, str, dict[str, Any], str]] = [
    ("RayCluster", "another operator's", {"managedBy": "acme.com/operator"},
     "the managedBy field value must be either 'ray.io/kuberay-operator' or"),
    ("RayCluster", "no head", {"headGroupSpec": None},
     "spec.headGroupSpec: Required value"),
    ("RayCluster", "an unknown autoscaler", {"autoscalerOptions": {"version": "v3"}},
     'Unsupported value: "v3": supported values: "v1", "v2"'),
    ("RayCluster", "an unknown mode", {"authOptions": {"mode": "password"}},
     'spec.authOptions.mode: Unsupported value: "password"'),
    ("RayCluster", "a number for a text", {"rayVersion": 2.6},
     'spec.rayVersion: Invalid value: "number"'),
    ("RayJob", "half a strategy", {_STRATEGY: {"onSuccess": _SELF}},
     "deletionStrategy requires either BOTH onSuccess and onFailure, OR the deletionRules field"),
    ("RayJob", "two strategies",
     {_STRATEGY: {"onSuccess": _SELF, "onFailure": _NONE, "deletionRules": [_RULE]}},
     "legacy policies (onSuccess/onFailure) and deletionRules cannot be used together"),
    ("RayJob", "another operator's", {"managedBy": "acme.com/operator"},
     "the managedBy field value must be either 'ray.io/kuberay-operator' or"),
    ("RayJob", "a text for a number", {"backoffLimit": "many"},
     'spec.backoffLimit: Invalid value: "string"'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [pytest.param(kind, change, said, id=f"{kind}, {what}") for kind, what, change, said in _RULES],
)
def test_kuberay_refuses_what_breaks_its_rules(
    kind: str, change: dict[str, Any], said: str, api: Api, helm: Helm, namespace: str
) -> None:
    good = _ray(kind, helm, namespace)
    api.create(good, namespace, dryRun="All", fieldValidation="Strict")
    with pytest.raises(Refused) as error:
        api.create(_merged(good, {"spec": change}), namespace, dryRun="All")
    assert error.value.status == 422
    assert said in str(error.value)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_operator_of_an_object_cannot_be_changed(
    kind: str, api: Api, helm: Helm, namespace: str
) -> None:
    good = _merged(_ray(kind, helm, namespace), {"spec": {"managedBy": "ray.io/kuberay-operator"}})
    api.create(good, namespace)
    change = {"spec": {"managedBy": "kueue.x-k8s.io/multikueue"}}
    with pytest.raises(Refused, match="the managedBy field is immutable"):
        api.patch(kind, good["metadata"]["name"], change, namespace)


# Pod Security


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostNetwork": True}, "host namespaces (hostNetwork=true)"),
        ({"securityContext": {"runAsUser": 0}}, "runAsUser=0"),
        ({"securityContext": {"runAsNonRoot": False}}, "runAsNonRoot != true"),
        (
            {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
            'volume "root" uses restricted',
        ),
    ],
)
def test_the_namespace_refuses_a_pod_that_may_do_more(
    change: dict[str, Any], said: str, api: Api, namespace: str
) -> None:
    """So the pods that the controllers make for the chart are there because they may do less."""
    contained = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {
            "containers": [{"name": "probe", "image": "probe", "securityContext": contained}],
            "securityContext": {"runAsNonRoot": True},
        },
    }
    api.create(pod, namespace, dryRun="All")
    with pytest.raises(Refused) as error:
        api.create(_merged(pod, {"spec": change}), namespace, dryRun="All")
    assert error.value.status == 403
    assert 'violates PodSecurity "restricted:latest"' in str(error.value)
    assert said in str(error.value)


# Helpers


def _ray(kind: str, helm: Helm, namespace: str) -> Object:
    """The chart's RayCluster, or a RayJob with its pods."""
    [cluster] = _of_kind(helm.template("rel", namespace, "retrain"), "RayCluster")
    if kind == "RayCluster":
        return cluster
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "step"},
        "spec": {"entrypoint": "true", "rayClusterSpec": cluster["spec"]},
    }


def _merged(item: Object, change: Object) -> Object:
    """As a JSON merge patch: null takes away."""
    merged = copy.deepcopy(item)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _of_kind(items: list[Object], kind: str) -> list[Object]:
    return [item for item in items if item["kind"] == kind]
