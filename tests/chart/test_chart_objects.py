"""How the objects of the chart belong together, for its default values and each set under ci/."""

from __future__ import annotations

import json
import re

import helm_python
from rendered_chart import (
    CHART,
    NAMESPACE,
    OLDEST,
    PodTemplate,
    each_set,
    objects,
    of_kind,
    pod_templates,
    render_text,
    values_of,
)


@each_set
def test_it_passes_the_strict_linter(name: str) -> None:
    report = helm_python.lint(CHART, values_of(name), strict=True, kube_version=f"v{OLDEST}.0")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


# References


@each_set
def test_selectors_select_the_pods_of_their_own_object(name: str) -> None:
    items = objects(name)
    pods = list(pod_templates(items))
    for item in of_kind(items, "Deployment", "StatefulSet"):
        wanted = item["spec"]["selector"]["matchLabels"]
        owner = f"{item['kind']}/{item['metadata']['name']}"
        assert {pod.owner for pod in pods if wanted.items() <= pod.labels.items()} == {owner}
    for service in of_kind(items, "Service"):
        found = [pod for pod in pods if service["spec"]["selector"].items() <= pod.labels.items()]
        assert found, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert all(port["targetPort"] in _port_names(pod) for pod in found)
    for budget in of_kind(items, "PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert any(wanted.items() <= pod.labels.items() for pod in pods)
    for monitor in of_kind(items, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        services = [
            each
            for each in of_kind(items, "Service")
            if wanted.items() <= each["metadata"]["labels"].items()
        ]
        ports = {port["name"] for each in services for port in each["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= ports
    for monitor in of_kind(items, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        if wanted["app.kubernetes.io/component"] == "rayjob":
            continue  # pods that a step's RayJob makes
        found = [pod for pod in pods if wanted.items() <= pod.labels.items()]
        assert found
        assert all("metrics" in _port_names(pod) for pod in found)


@each_set
def test_what_is_named_is_there(name: str) -> None:
    items = objects(name)
    names = {(item["kind"], item["metadata"]["name"]) for item in items}
    places = [
        (item["kind"], item["metadata"]["name"], item["metadata"].get("namespace"))
        for item in items
    ]
    assert len(places) == len(set(places))
    for pod in pod_templates(items):
        assert ("ServiceAccount", pod.spec["serviceAccountName"]) in names
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names
        claims = {"data"} if pod.owner.startswith("StatefulSet/") else set()
        for container in pod.containers:
            assert {each["name"] for each in container["volumeMounts"]} <= volumes | claims
    for ingress in of_kind(items, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert ("Service", path["backend"]["service"]["name"]) in names
    for route in of_kind(items, "HTTPRoute"):
        backends = [each for rule in route["spec"]["rules"] for each in rule["backendRefs"]]
        assert all(("Service", each["name"]) in names for each in backends)
        assert sum(each["weight"] for each in backends) == 100
    for scaler in of_kind(items, "HorizontalPodAutoscaler"):
        assert ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]) in names
    for binding in of_kind(items, "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in names


@each_set
def test_no_secret_is_in_an_object(name: str) -> None:
    """Secrets are named, and their values are nowhere: not in a variable, an argument or a URI."""
    assert of_kind(objects(name), "Secret") == []
    text = "\n".join(render_text(values_of(name)))
    assert not re.search(r"://[^/\s\"']+:[^/\s\"'@]+@", text)
    assert "PRIVATE KEY" not in text
    for pod in pod_templates(objects(name)):
        for container in pod.containers:
            for variable in container["env"]:
                if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"]):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, variable["name"]


def test_objects_are_deterministic() -> None:
    assert render_text(values_of("everything")) == render_text(values_of("everything"))


# What watches


def test_the_dashboard_is_shipped_as_it_is() -> None:
    """tests/unit/test_dashboard.py looks at its queries."""
    [shipped] = [
        each
        for each in of_kind(objects("dashboard"), "ConfigMap")
        if "emberline.json" in each["data"]
    ]
    stored = (CHART / "dashboards" / "emberline.json").read_text(encoding="utf-8")
    assert json.loads(shipped["data"]["emberline.json"]) == json.loads(stored)
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "ml"
    assert shipped["metadata"]["annotations"] == {"grafana_folder": "ML"}
    others = [
        each for each in of_kind(objects("monitoring"), "ConfigMap") if "dashboard" in str(each)
    ]
    assert others == []


@each_set
def test_monitors_are_found_by_the_labels_of_the_values(name: str) -> None:
    monitoring = values_of(name).get("monitoring", {})
    monitors = of_kind(objects(name), "ServiceMonitor", "PodMonitor")
    assert bool(monitors) is monitoring.get("enabled", False)
    for monitor in monitors:
        assert monitoring.get("labels", {}).items() <= monitor["metadata"]["labels"].items()


# Rights

_RIGHTS = {
    "rel-emberline-pipeline": [
        ([""], ["pods"], "list"),
        ([""], ["pods/log"], "get"),
        (["ray.io"], ["rayjobs"], "create delete get list patch"),
    ],
    "rel-emberline-reaper": [
        ([""], ["pods"], "get list"),
        (["ray.io"], ["rayjobs"], "delete get list"),
    ],
}
_GRANTED = {  # where, and to whom
    "rel-emberline-pipeline": {
        NAMESPACE: [(NAMESPACE, "rel-emberline-pipeline"), ("kubeflow", "pipeline-runner")]
    },
    "rel-emberline-reaper": {
        place: [(NAMESPACE, "rel-emberline-reaper")] for place in (NAMESPACE, "kubeflow", "team-a")
    },
}


def test_roles_allow_no_more_than_this() -> None:
    items = [*objects("reaper"), *objects("everything")]
    assert of_kind(items, "ClusterRole", "ClusterRoleBinding") == []
    roles, granted = of_kind(objects("reaper"), "Role"), dict[str, dict[str, list[object]]]()
    for role in roles:
        assert (
            sorted(
                (rule["apiGroups"], rule["resources"], " ".join(sorted(rule["verbs"])))
                for rule in role["rules"]
            )
            == _RIGHTS[role["metadata"]["name"]]
        )
    for binding in of_kind(objects("reaper"), "RoleBinding"):
        place = binding["metadata"].get("namespace", NAMESPACE)
        granted.setdefault(binding["roleRef"]["name"], {})[place] = [
            (each["namespace"], each["name"]) for each in binding["subjects"]
        ]
    assert granted == _GRANTED
    places = [(role["metadata"]["name"], role["metadata"].get("namespace")) for role in roles]
    assert len(places) == len(set(places)) == sum(map(len, _GRANTED.values()))


def test_a_role_of_aws_is_that_of_its_component() -> None:
    accounts = {
        account["metadata"]["name"]: account["metadata"].get("annotations", {})
        for account in of_kind(objects("webhook"), "ServiceAccount")
    }
    arn = "arn:aws:iam::123456789012:role/deployer"
    assert accounts["rel-emberline-webhook"] == {"eks.amazonaws.com/role-arn": arn}
    assert accounts["rel-emberline-mlflow"] == {}


# Helpers


def _port_names(pod: PodTemplate) -> set[str]:
    return {port["name"] for each in pod.containers for port in each.get("ports", [])}
