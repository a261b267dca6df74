"""RayJobs of pipeline steps, made as the chart's notes say: they are among its pods."""

from __future__ import annotations

import re
from typing import Any

import yaml
from network_flows import End, is_allowed
from pod_security import broken_controls
from rendered_chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    notes,
    objects,
    of_kind,
    pod_templates,
    values_of,
)

from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.targets.rayjob_manifest import RayJob
from ray_jobs.targets.rayjob_spec import RayJobSpec

_HERE = {"kubernetes.io/metadata.name": NAMESPACE}


def _described(name: str) -> dict[str, Any]:
    """What the notes would have in a job description."""
    text = notes(values_of(name))
    start = text.index("  kubeflow:")
    lines = text[start:].splitlines()
    end = next(number for number, line in enumerate(lines) if not re.match(r"  +\w+:", line))
    return yaml.safe_load("\n".join(lines[:end]))


def _templates(name: str) -> list[dict[str, Any]]:
    """The pods of a RayJob of such a description: head, worker, submitter."""
    settings = RayJobSpec(**_described(name)["rayjob"], num_workers=1)
    manifest = RayJob("fire-r1", ["true"], settings, {}, {}).manifest(NAMESPACE)
    cluster = manifest["spec"]["rayClusterSpec"]
    return [
        cluster["headGroupSpec"]["template"],
        cluster["workerGroupSpecs"][0]["template"],
        manifest["spec"]["submitterPodTemplate"],
    ]


def test_the_notes_are_a_job_description() -> None:
    described = _described("dashboard")
    accounts = {
        each["metadata"]["name"] for each in of_kind(objects("dashboard"), "ServiceAccount")
    }
    kubeflow, settings = KubeflowSpec(**described["kubeflow"]), RayJobSpec(**described["rayjob"])
    assert kubeflow.train_on == "rayjob"
    assert kubeflow.env == {"EMBERLINE_LOG_FORMAT": "text"}
    assert {kubeflow.service_account, settings.service_account} <= accounts
    assert settings.env == {"EMBERLINE_LOG_FORMAT": "text", "EMBERLINE_METRICS": "ray"}
    assert settings.labels == {"app.kubernetes.io/instance": RELEASE}
    assert settings.queue is None
    assert _described("kueue")["rayjob"]["queue"] == "research"
    assert "EMBERLINE_METRICS" not in _described("reaper")["rayjob"]["env"]
    assert ("reaper.enabled=true" in notes(values_of("dashboard"))) is True
    assert ("reaper.enabled=true" in notes(values_of("reaper"))) is False


def test_its_pods_are_as_the_charts() -> None:
    """Of the image's own user, so that they may share volumes."""
    own = next(pod for pod in pod_templates(objects("dashboard")) if "smoke" in pod.owner)
    dockerfile = (CHART.parents[1] / "Dockerfile").read_text(encoding="utf-8")
    assert f"\nARG UID={own.spec['securityContext']['runAsUser']}\n" in dockerfile
    for template in _templates("dashboard"):
        spec = template["spec"]
        assert broken_controls(spec) == []
        assert spec["securityContext"] == own.spec["securityContext"]
        assert spec["automountServiceAccountToken"] is False


def test_its_pods_reach_what_they_need() -> None:
    policies = of_kind(objects("dashboard"), "NetworkPolicy")
    head, worker, submitter = (
        End(
            template["metadata"]["labels"],
            _HERE,
            {
                port["name"]: port["containerPort"]
                for port in template["spec"]["containers"][0].get("ports", [])
            },
        )
        for template in _templates("dashboard")
    )
    mlflow_labels = next(
        pod.labels for pod in pod_templates(objects("dashboard")) if "mlflow" in pod.owner
    )
    mlflow = End(mlflow_labels, _HERE, {"http": 5000})
    names = End({}, {"kubernetes.io/metadata.name": "kube-system"})
    outside = End(address="93.184.216.34")
    prometheus = End({}, {"kubernetes.io/metadata.name": "monitoring"})
    operator = End({"app.kubernetes.io/name": "kuberay-operator"}, {})
    for source, target, port in (
        (submitter, head, 8265), (worker, head, 6379), (head, worker, 30123),
        (head, mlflow, 5000), (worker, mlflow, 5000), (worker, outside, 443), (head, names, 53),
        (prometheus, head, 8080), (prometheus, worker, 8080), (operator, head, 8265),
    ):  # fmt: skip
        assert is_allowed(policies, source, target, port), (source, target, port)
    stranger = End({"app": "notebook"}, _HERE)
    assert not is_allowed(policies, stranger, head, 8265)
    assert not is_allowed(policies, head, outside, 80)


def test_its_pods_are_read_by_prometheus() -> None:
    wanted = [
        monitor["spec"]
        for monitor in of_kind(objects("dashboard"), "PodMonitor")
        if monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "rayjob"
    ]
    (monitor,) = wanted
    head, worker, submitter = _templates("dashboard")
    for template in (head, worker, submitter):
        labels = template["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
    for template in (head, worker):
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= ports
