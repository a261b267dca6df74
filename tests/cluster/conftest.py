"""A real control plane for a session of tests, with what the chart leans on: custom resources,
volumes, nodes and Secrets. `make cluster-test` builds the programs and runs the tests."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api import Api, Object, until
from tests.cluster.control_plane import PROGRAMS, ControlPlane, control_plane
from tests.cluster.fake_nodes import FakeNodes
from tests.cluster.helm import VALUE_SETS, Helm, values_of
from tests.go_tools import TOOLS, GoMissing, module_folder, tool_or_skip

# Of the objects that the chart makes where it is told to: (module, version, files).
_CUSTOM_RESOURCES = (
    (TOOLS["ray-operator"].module, TOOLS["ray-operator"].version, "config/crd/bases/*.yaml"),
    ("sigs.k8s.io/gateway-api", "v1.3.0", "config/crd/standard/*_httproutes.yaml"),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "example/prometheus-operator-crd/*monitors.yaml",
    ),
)
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

# What the value sets under charts/emberline/ci name.
_SECRETS = {
    "emberline-mlflow": [
        "admin-username", "admin-password", "flask-secret-key", "webhook-encryption-key",
    ],
    "emberline-postgresql": ["password"],
    "aws": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    "minio-keys": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    "mlflow-client": ["username", "password"],
    "mlflow-reader": ["username", "password"],
    "ray-token": ["auth_token"],
    "rds": ["password"],
    "rds-ca": ["ca.crt"],
    "redis": ["password"],
    "signing": ["signing.pem"],
    "webhook": ["secret"],
}  # fmt: skip


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A running control plane; skipped where there is no Go."""
    programs = {name: tool_or_skip(name) for name in PROGRAMS}
    folder = Path(tempfile.mkdtemp(prefix="emberline-cluster-"))
    with control_plane(programs, folder) as running:
        yield running
    shutil.rmtree(folder)  # kept, with its logs, where a program did not start


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Api:
    """As the cluster's administrator."""
    return Api(plane.client)


@pytest.fixture(scope="session")
def nodes(api: Api) -> Iterator[FakeNodes]:
    """Two nodes on which pods are Running and Ready as soon as they are scheduled."""
    with FakeNodes(api) as running:
        yield running


@pytest.fixture(scope="session")
def custom_resources() -> list[Object]:
    """The CustomResourceDefinitions of KubeRay, the Gateway API and the Prometheus operator."""
    try:
        found = [
            sorted(module_folder(module, version).glob(files))
            for module, version, files in _CUSTOM_RESOURCES
        ]
    except GoMissing as error:
        pytest.skip(str(error))
    return [yaml.load(path.read_text(), yaml.CSafeLoader) for paths in found for path in paths]


@pytest.fixture(scope="session")
def cluster(
    plane: ControlPlane, api: Api, nodes: FakeNodes, custom_resources: list[Object]
) -> ControlPlane:
    """The control plane with nodes and custom resources: ready for the chart."""
    reaped = [values_of(name).get("reaper", {}).get("namespaces", []) for name in VALUE_SETS]
    for name in sorted({"kubeflow"}.union(*reaped)):  # those that value sets name
        api.create(_namespace(name))
    for item in custom_resources:
        api.create(item)
    for item in custom_resources:
        name = item["metadata"]["name"]
        until(lambda name=name: _is_established(api, name), f"{name} is established")
    return plane


@pytest.fixture(scope="session")
def helm(cluster: ControlPlane) -> Helm:
    return Helm(tool_or_skip("helm"), cluster.kubeconfig, cluster.folder / "helm")


@pytest.fixture
def namespace(cluster: ControlPlane, api: Api) -> Iterator[str]:
    """One of the test's own that enforces Pod Security `restricted`, with `_SECRETS`."""
    with _new_namespace(api) as name:
        yield name


@pytest.fixture(scope="module")
def shared_namespace(cluster: ControlPlane, api: Api) -> Iterator[str]:
    """Likewise, for all tests of a module."""
    with _new_namespace(api) as name:
        yield name


@contextmanager
def _new_namespace(api: Api) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    api.create(_namespace(name))
    for secret, keys in _SECRETS.items():
        data = {key: secrets.token_hex(8) for key in keys}
        api.create(_secret(secret, "Opaque", data), name)
    registry = _secret("registry", "kubernetes.io/dockerconfigjson", {".dockerconfigjson": "{}"})
    api.create(registry, name)
    until(lambda: api.is_there("ServiceAccount", "default", name), "pods have an account")
    yield name
    api.delete("Namespace", name)


def _namespace(name: str) -> Object:
    metadata = {"name": name, "labels": _RESTRICTED}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _secret(name: str, kind: str, data: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": kind,
        "stringData": data,
    }


def _is_established(api: Api, name: str) -> bool:
    conditions = api.get("CustomResourceDefinition", name).get("status", {}).get("conditions", [])
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
