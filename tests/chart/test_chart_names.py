"""Names of objects, whatever the release is called."""

from __future__ import annotations

import re

import kubernetes_validate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rendered_chart import Object, of_kind, pod_templates, render, values_of

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, which Services keep to
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LONGEST = {
    "CronJob": 52,  # its Jobs get 11 characters more
    "StatefulSet": 52,  # likewise the label of its pods' revision
    "RayCluster": 50,  # KubeRay cuts what it derives from longer ones
    "ServiceAccount": 50,  # likewise, in the RoleBinding of the autoscaler
}
_PART = r"[a-z0-9]([-a-z0-9]{0,25}[a-z0-9])?"
releases = st.from_regex(rf"\A{_PART}(\.{_PART})?\Z").filter(lambda name: len(name) <= 53)
models = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9_.-]{0,28}[A-Za-z0-9])?\Z")


@given(release=releases, model=models)
@example(release="r" * 53, model="m" * 30)
@example(release="0" * 53, model="0")
@settings(max_examples=30, deadline=None)
def test_names_and_labels_are_valid_and_distinct(release: str, model: str) -> None:
    values = values_of("everything")
    del values["fullnameOverride"]
    values["serving"]["models"][0]["name"] = model
    values["serving"]["models"][1:] = []
    values["retrain"]["jobs"][0]["workload"] = model
    items = render(values, release)
    for item in items:
        name = item["metadata"]["name"]
        assert _LABEL.fullmatch(name), name
        assert len(name) <= _LONGEST.get(item["kind"], 63), (item["kind"], name)
        for value in item["metadata"]["labels"].values():
            assert len(value) <= 63
            assert _VALUE.fullmatch(value), value
    for pod in pod_templates(items):
        assert all(_VALUE.fullmatch(value) and len(value) <= 63 for value in pod.labels.values())
    places = [(item["kind"], name_of(item), item["metadata"].get("namespace")) for item in items]
    assert len(set(places)) == len(items)


def name_of(item: Object) -> str:
    return str(item["metadata"]["name"])


def test_the_longest_names_are_cut_and_stay_apart() -> None:
    values = values_of("everything")
    del values["fullnameOverride"]
    values["retrain"]["jobs"][0]["workload"] = "m" * 30
    names = [
        {name_of(item) for item in of_kind(render(values, "r" * 52 + end), "CronJob")}
        for end in "ab"
    ]
    assert names[0].isdisjoint(names[1])
    assert all(50 <= len(name) <= 52 for found in names for name in found)


def test_names_of_yours_that_look_like_numbers_stay_texts() -> None:
    """YAML reads 0123, 1e5 and null as no text, and Kubernetes then refuses them."""
    values = values_of("everything")
    values["storage"]["existingSecret"] = values["signing"]["existingSecret"] = "0123"
    values["webhook"]["existingSecret"] = values["mlflow"]["clientSecret"] = "1e5"
    values["ray"]["auth"] = {"existingSecret": "null"}
    values["ray"]["workerGroups"]["true"] = values["ray"]["workerGroups"].pop("gpu")
    values["kueue"] = {"queueName": "007"}
    values["ray"]["autoscaler"] = {"enabled": False}
    values["ray"]["workerGroups"]["true"] |= {"minReplicas": 1}
    values["ray"]["workerGroups"]["cpu"] = {"minReplicas": 1}
    values["mlflow"]["auth"] = {"existingSecret": "0o17"}
    values["postgresql"] = {"existingSecret": "1.5", "persistence": {"storageClassName": "12"}}
    values["ingress"] |= {"className": "0", "tlsSecret": "0x1f"}
    values["imagePullSecrets"] = ["42"]
    for item in render(values, "1e5"):
        if item["kind"] == "RayCluster":
            groups = item["spec"]["workerGroupSpecs"]
            assert [group["groupName"] for group in groups] == ["cpu", "true"]
            assert item["spec"]["authOptions"]["secretName"] == "null"
            assert item["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "007"
            for pod in pod_templates([item]):
                assert all(isinstance(value, str) for value in pod.labels.values())
        else:
            kind = item["kind"]
            if kind not in ("ServiceMonitor", "PodMonitor"):
                kubernetes_validate.validate(item, "1.37", strict=True)
