"""NetworkPolicies: everything is denied but the flows that are named."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from network_flows import End, is_allowed
from rendered_chart import NAMESPACE, RELEASE, VALUE_SETS, objects, of_kind, pod_templates

_HERE = {"kubernetes.io/metadata.name": NAMESPACE}
_SYSTEM = {"kubernetes.io/metadata.name": "kube-system"}
_LISTENS = {
    "mlflow": {"http": 5000},
    "postgresql": {"postgresql": 5432},
    "serving": {"http": 8080},
    "webhook": {"http": 8090},
    "ray": {"dashboard": 8265, "client": 10001, "gcs-server": 6379, "metrics": 8080},
    "training": {},
    "reaper": {},
    "rayjob": {"dashboard": 8265, "gcs-server": 6379, "metrics": 8080},
}
_OTHERS = {
    "neighbour": End({"app": "notebook"}, _HERE),
    "stranger": End({"app": "notebook"}, {"kubernetes.io/metadata.name": "elsewhere"}),
    "kubeflow": End({}, {"kubernetes.io/metadata.name": "kubeflow"}),
    "prometheus": End({}, {"kubernetes.io/metadata.name": "monitoring"}),
    "ingress": End({}, {"kubernetes.io/metadata.name": "ingress-nginx"}),
    "kuberay": End({"app.kubernetes.io/name": "kuberay-operator"}, {}),
    "internet": End(address="93.184.216.34"),
}


def _end(name: str) -> End:
    if name in _OTHERS:
        return _OTHERS[name]
    if name == "rayjob":  # made by a step, with the labels that NOTES.txt names
        labels: Mapping[str, str] = {
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": name,
        }
    else:
        labels = next(
            pod.labels
            for pod in pod_templates(objects("everything"))
            if pod.labels["app.kubernetes.io/component"] == name
        )
    return End(labels, _HERE, _LISTENS[name])


# Of the set "everything": who may open a connection to whom. All other pairs are denied.
_FLOWS = {
    ("mlflow", "postgresql", 5432),
    ("mlflow", "webhook", 8090),
    ("serving", "mlflow", 5000),
    ("webhook", "mlflow", 5000),
    ("training", "mlflow", 5000),
    ("ray", "mlflow", 5000),
    ("kubeflow", "mlflow", 5000),
    ("ingress", "mlflow", 5000),
    ("neighbour", "serving", 8080),
    ("ingress", "serving", 8080),
    ("prometheus", "serving", 8080),
    ("training", "ray", 8265),
    ("kubeflow", "ray", 8265),
    ("kuberay", "ray", 8265),
    ("prometheus", "ray", 8080),
    ("ray", "ray", 8265),
    ("ray", "ray", 6379),
    ("ray", "ray", 10001),
    ("ray", "ray", 8080),
    ("mlflow", "internet", 443),
    ("serving", "internet", 443),
    ("webhook", "internet", 443),
    ("training", "internet", 443),
    ("ray", "internet", 443),
    ("ray", "internet", 6443),
    ("ray", "internet", 6379),
    ("rayjob", "mlflow", 5000),
    ("rayjob", "rayjob", 8265),
    ("rayjob", "rayjob", 6379),
    ("rayjob", "rayjob", 8080),
    ("rayjob", "internet", 443),
    ("kuberay", "rayjob", 8265),
    ("kubeflow", "rayjob", 8265),
    ("prometheus", "rayjob", 8080),
    ("reaper", "ray", 8265),
    ("reaper", "internet", 443),
    ("reaper", "internet", 6443),
}


def test_exactly_the_named_flows_get_through() -> None:
    policies = of_kind(objects("everything"), "NetworkPolicy")
    targets = [(name, port) for name, ports in _LISTENS.items() for port in ports.values()]
    targets += [("internet", port) for port in (80, 443, 5432, 6379, 6443)]
    components = [*_LISTENS, *_OTHERS]
    allowed = {
        (source, target, port)
        for source in components
        for target, port in targets
        if (source in _LISTENS or target in _LISTENS)
        and is_allowed(policies, _end(source), _end(target), port)
    }
    assert allowed == _FLOWS


@pytest.mark.parametrize("name", [name for name in VALUE_SETS if name != "minimal"])
def test_every_pod_is_under_the_denial_and_can_look_up_names(name: str) -> None:
    policies = of_kind(objects(name), "NetworkPolicy")
    [denial] = [each for each in policies if each["metadata"]["name"].endswith("-deny")]
    assert set(denial["spec"]) == {"podSelector", "policyTypes"}
    assert denial["spec"]["policyTypes"] == ["Ingress", "Egress"]
    wanted = denial["spec"]["podSelector"]["matchLabels"]
    for pod in pod_templates(objects(name)):
        assert wanted.items() <= pod.labels.items(), pod.owner
        looks_up = is_allowed(policies, End(pod.labels, _HERE), End({}, _SYSTEM), 53)
        is_database = pod.labels["app.kubernetes.io/component"] == "postgresql"
        assert looks_up is not is_database


def test_no_policy_is_made_where_none_is_wanted() -> None:
    assert of_kind(objects("minimal"), "NetworkPolicy") == []


def test_an_s3_within_the_cluster_is_reached_at_its_port() -> None:
    policies = of_kind(objects("minio"), "NetworkPolicy")
    minio = End({}, {"kubernetes.io/metadata.name": "minio"})
    mlflow = _end("mlflow")
    assert is_allowed(policies, mlflow, minio, 9000)
    assert not is_allowed(policies, mlflow, minio, 9001)
    assert not is_allowed(policies, mlflow, _OTHERS["internet"], 443)
