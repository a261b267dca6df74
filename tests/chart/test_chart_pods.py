"""Every pod: what it may do, what bounds it, and how it begins and ends."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from pod_security import CONTROLS, broken_controls
from rendered_chart import each_set, objects, of_kind, pod_templates, render, values_of


@each_set
def test_every_pod_meets_pod_security_restricted(name: str) -> None:
    for pod in pod_templates(objects(name)):
        assert broken_controls(pod.spec) == [], pod.owner


@pytest.mark.parametrize(
    ("control", "change"),
    [
        ("Host Namespaces", {"hostNetwork": True}),
        ("Privileged Containers", {"securityContext": {"privileged": True}}),
        ("Host Ports", {"ports": [{"containerPort": 80, "hostPort": 80}]}),
        ("AppArmor", {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
        ("SELinux", {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}),
        ("/proc Mount Type", {"securityContext": {"procMount": "Unmasked"}}),
        ("Sysctls", {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
        ("HostProcess", {"securityContext": {"windowsOptions": {"hostProcess": True}}}),
        ("Volume Types", {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}),
        ("Privilege Escalation", {"securityContext": {"allowPrivilegeEscalation": None}}),
        ("Running as Non-root", {"securityContext": {"runAsNonRoot": False}}),
        ("Running as Non-root user", {"securityContext": {"runAsUser": 0}}),
        ("Seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        ("Capabilities", {"securityContext": {"capabilities": {"drop": []}}}),
    ],
)
def test_each_control_of_pod_security_bites(control: str, change: dict[str, Any]) -> None:
    pod = copy.deepcopy(dict(next(pod_templates(objects("default"))).spec))
    for key, value in change.items():
        if key in ("hostNetwork", "volumes"):
            pod[key] = value
        elif key == "sysctls":
            pod["securityContext"][key] = value
        elif key == "ports":
            pod["containers"][0][key] = value
        else:
            pod["containers"][0][key] |= value
    assert broken_controls(pod) == [control]
    assert control in CONTROLS


@each_set
def test_every_container_is_bounded_and_cannot_write_to_its_root(name: str) -> None:
    for pod in pod_templates(objects(name)):
        for container in pod.containers:
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][bound]), pod.owner
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            scratch = {volume["name"] for volume in pod.spec["volumes"] if "emptyDir" in volume}
            home = {each["name"]: each for each in container["env"]}.get("HOME")
            assert mounts["/tmp"] in scratch
            assert home is None or mounts[home["value"]] in scratch


@each_set
def test_every_server_tells_whether_it_is_ready(name: str) -> None:
    for item in of_kind(objects(name), "Deployment", "StatefulSet"):
        [container] = item["spec"]["template"]["spec"]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


def test_a_pod_that_serves_outlives_its_requests() -> None:
    """30 s is the app's limit of a request, 2 s its drain: ray_jobs/serve.py."""
    for item in of_kind(objects("everything"), "Deployment"):
        if item["metadata"]["labels"]["app.kubernetes.io/component"] == "serving":
            pod = item["spec"]["template"]["spec"]
            pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
            assert pod["terminationGracePeriodSeconds"] > pause + 2 + 30


@each_set
def test_only_the_autoscaler_and_the_reaper_may_call_the_api_server(name: str) -> None:
    for pod in pod_templates(objects(name)):
        has_token = any(each["name"] in ("autoscaler", "reaper") for each in pod.containers)
        assert pod.spec["automountServiceAccountToken"] is has_token, pod.owner
    assert all(
        account["automountServiceAccountToken"] is False
        for account in of_kind(objects(name), "ServiceAccount")
    )


@each_set
def test_the_projects_own_processes_log_as_the_values_say(name: str) -> None:
    wanted = values_of(name).get("logs", {}).get("format", "json")
    found = 0
    for pod in pod_templates(objects(name)):
        if pod.labels["app.kubernetes.io/component"] in ("mlflow", "postgresql"):
            continue
        for container in pod.containers:
            if container["name"] != "autoscaler":  # Ray's own
                variables = {each["name"]: each.get("value") for each in container["env"]}
                assert variables["EMBERLINE_LOG_FORMAT"] == wanted, pod.owner
                found += 1
    assert found


def test_jobs_on_ray_have_metrics_where_they_are_read() -> None:
    for name, wanted in (("monitoring", "ray"), ("retrain", None)):
        pods = [pod for pod in pod_templates(objects(name)) if pod.owner.startswith("RayCluster/")]
        assert len(pods) == 2
        for pod in pods:
            own = pod.spec["containers"][0]["env"]
            variables = {each["name"]: each.get("value") for each in own}
            assert variables.get("EMBERLINE_METRICS") == wanted


def test_a_reaper_has_keys_of_aws_only_where_it_looks_there() -> None:
    values = values_of("reaper")
    values["storage"]["existingSecret"] = "aws"
    for looks in (True, False):
        values["reaper"]["sagemaker"] = looks
        [pod] = [pod for pod in pod_templates(render(values)) if "reaper" in pod.owner]
        names = {each["name"] for each in pod.containers[0]["env"]}
        assert ("AWS_SECRET_ACCESS_KEY" in names) is looks
        assert ("--sagemaker" in pod.containers[0]["args"]) is looks


def test_a_digest_takes_the_place_of_the_tag() -> None:
    images = {
        container["image"]
        for pod in pod_templates(objects("pinned"))
        for container in pod.containers
    }
    assert len(images) == 2
    assert all(
        re.fullmatch(r"registry\.example\.com/\S+@sha256:[0-9a-f]{64}", one) for one in images
    )


def test_a_tag_of_a_group_is_not_lost_to_the_digest_of_the_rest() -> None:
    values = values_of("ray-gpu") | {"image": {"digest": "sha256:" + "0" * 64}}
    [cluster] = of_kind(render(values), "RayCluster")
    images = [
        group["template"]["spec"]["containers"][0]["image"]
        for group in cluster["spec"]["workerGroupSpecs"]
    ]
    assert images == ["emberline@sha256:" + "0" * 64, "emberline:0.1.0-cuda"]
