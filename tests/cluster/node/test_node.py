"""The node itself: what a pod of the chart's kind may do there, and how its end is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.api import Api, Object, until
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node.images import Image
from tests.cluster.node.machine import Machine

_NAME = "localhost/probe:1"
_SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
  int file = open("/written", O_CREAT | O_WRONLY, 0644);
  printf("user %d, root %s\n", getuid(), file < 0 ? strerror(errno) : "written");
  return atoi(words[1]);
}
"""


@pytest.fixture(scope="module")
def probe(nodes: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of a program that tells who it is and ends with the code that it is given."""
    folder: Path = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(_SOURCE)
    words = ["cc", "-static", "-o", str(folder / "probe"), str(folder / "probe.c")]
    subprocess.run(words, check=True, timeout=60)
    image = Image({"probe": (folder / "probe").read_bytes()}, ("/probe",))
    nodes.load(image.write(folder / "probe.tar", _NAME))
    return _NAME


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (5, "Failed")])
def test_a_pod_runs_without_rights_and_its_exit_code_is_told(
    code: int, phase: str, probe: str, cluster: ControlPlane, api: Api, namespace: str
) -> None:
    api.create(_pod(probe, code), namespace)
    until(lambda: _phase(api, namespace) == phase, f"the pod is {phase}", 120)
    [status] = api.get("Pod", "probe", namespace)["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == code
    from kubernetes.client import CoreV1Api

    log = CoreV1Api(cluster.client).read_namespaced_pod_log("probe", namespace)
    assert log == "user 65532, root Read-only file system\n"


def _pod(image: str, code: int) -> Object:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "probe",
        "image": image,
        "imagePullPolicy": "Never",
        "args": [str(code)],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


def _phase(api: Api, namespace: str) -> str:
    return api.get("Pod", "probe", namespace)["status"]["phase"]
