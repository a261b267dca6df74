"""KubeRay's operator as a process, with the rights that its own Role gives it and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.cluster.api import Api
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import Process, answers, free_port

_NAMESPACE, _ACCOUNT = "kuberay-system", "kuberay-operator"
_START_S = 120


@contextmanager
def operator(program: Path, sources: Path, plane: ControlPlane, api: Api) -> Iterator[Process]:
    """At work while the block runs. `sources`: the module's folder, with its Role.

    Raises RuntimeError with the end of its log where it does not start.
    """
    if not api.is_there("Namespace", _NAMESPACE):
        _grant(sources, api)
    token = api.token(_ACCOUNT, _NAMESPACE)
    metrics, health = free_port(), free_port()
    words = [
        str(program),
        "-enable-leader-election=false",
        f"-metrics-addr=127.0.0.1:{metrics}",
        f"-health-probe-bind-address=127.0.0.1:{health}",
    ]
    kubeconfig = str(plane.write_kubeconfig(_ACCOUNT, token))
    environment = {**os.environ, "KUBECONFIG": kubeconfig, "ENABLE_WEBHOOKS": "false"}
    with Process("ray-operator", words, plane.folder, environment) as process:
        ready = f"http://127.0.0.1:{health}/readyz"
        process.wait_until(lambda: answers(ready), _START_S)
        yield process


def _grant(sources: Path, api: Api) -> None:
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": _ACCOUNT}}
    api.create(account, _NAMESPACE)
    role = yaml.safe_load((sources / "config" / "rbac" / "role.yaml").read_text())
    api.create(role)
    api.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _ACCOUNT},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role["metadata"]["name"],
            },
            "subjects": [
                {"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": _NAMESPACE},
            ],
        }
    )
