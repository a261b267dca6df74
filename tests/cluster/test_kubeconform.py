"""kubeconform over what real Helm renders: a second opinion on the schemas, for the oldest
Kubernetes that the chart is for and the one of these tests."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.api import Object
from tests.cluster.helm import CHART, VALUE_SETS, Helm
from tests.go_tools import tool_or_skip

_SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
_VERSIONS = ("1.29.0", "1.34.0")


@pytest.fixture(scope="session")
def rendering_helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    home = tmp_path_factory.mktemp("helm")
    return Helm(tool_or_skip("helm"), home / "no-kubeconfig", home)


@pytest.fixture(scope="session")
def rendered(rendering_helm: Helm) -> dict[str, list[Object]]:
    """The objects of each value set."""
    return {values: rendering_helm.template("rel", "ns", values) for values in VALUE_SETS}


@pytest.fixture(scope="session")
def custom_schemas(
    custom_resources: list[Object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The schemas of custom resources as files, closed to fields that they do not name."""
    folder = tmp_path_factory.mktemp("schemas")
    for item in custom_resources:
        for version in item["spec"]["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"metadata": {"type": "object"}}
            kind = item["spec"]["names"]["kind"].lower()
            (folder / f"{kind}-{version['name']}.json").write_text(json.dumps(schema))
    return folder


@pytest.mark.parametrize("version", _VERSIONS)
def test_every_object_conforms(
    version: str, rendered: dict[str, list[Object]], custom_schemas: Path, tmp_path: Path
) -> None:
    found = _conform(version, rendered, custom_schemas, tmp_path)
    assert found["resources"] == []  # those that are at fault
    counts = found["summary"]
    assert (counts["invalid"], counts["errors"], counts["skipped"]) == (0, 0, 0)
    assert counts["valid"] == sum(len(items) for items in rendered.values())


@pytest.mark.parametrize("kind", ["Deployment", "RayCluster"])
def test_a_field_that_no_kind_has_is_found(
    kind: str, rendered: dict[str, list[Object]], custom_schemas: Path, tmp_path: Path
) -> None:
    items = copy.deepcopy(rendered["everything"])
    item = next(item for item in items if item["kind"] == kind)
    item["spec"]["replica"] = 3
    [found] = _conform("1.34.0", {"broken": [item]}, custom_schemas, tmp_path)["resources"]
    assert found["status"] == "statusInvalid"
    assert "additional properties 'replica' not allowed" in found["msg"]


def test_helm_lints_the_chart(rendering_helm: Helm) -> None:
    for values, path in VALUE_SETS.items():
        words = ("--values", str(path)) if path else ()
        said = rendering_helm("lint", "--strict", str(CHART), *words)
        assert "0 chart(s) failed" in said, values


def _conform(
    version: str, rendered: Mapping[str, list[Object]], custom_schemas: Path, folder: Path
) -> dict[str, Any]:
    own, objects = folder / "schemas", folder / "objects"
    own.mkdir()
    objects.mkdir()
    kinds = {item["kind"].lower() for items in rendered.values() for item in items}
    for path in (_SCHEMAS / f"v{version}-local-strict").glob("*.json"):
        if path.name == "_definitions.json" or path.name.split("-")[0] in kinds:
            text = path.read_text().replace("/api/_definitions.json", "_definitions.json")
            schema = json.loads(text)
            del schema["$id"]  # an address, from which the definitions would be fetched
            (own / path.name).write_text(json.dumps(schema))
    for name, items in rendered.items():
        (objects / f"{name}.yaml").write_text(yaml.safe_dump_all(items))
    kind = "{{ .ResourceKind }}"
    done = subprocess.run(
        [tool_or_skip("kubeconform"), "-strict", "-summary", "-output=json",
         f"-kubernetes-version={version}",
         f"-schema-location={own}/{kind}{{{{ .KindSuffix }}}}.json",
         f"-schema-location={custom_schemas}/{kind}-{{{{ .ResourceAPIVersion }}}}.json", objects],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return json.loads(done.stdout)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """With no other fields than the named ones, as the API server takes it."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = _closed(schema[key])
    return closed
