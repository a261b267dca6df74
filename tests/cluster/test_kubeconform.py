"""kubeconform over what real Helm renders: a second opinion on the schemas, for the oldest
Kubernetes that the chart is for and the newest that the schemas are there for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.cluster.api import Object
from tests.cluster.helm import CHART, VALUE_SETS, Helm
from tests.go_tools import tool_or_skip

_SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
_VERSIONS = ("1.29.0", "1.34.0", "1.37.0")


@pytest.fixture(scope="session")
def rendering_helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    home = tmp_path_factory.mktemp("helm")
    return Helm(tool_or_skip("helm"), home / "no-kubeconfig", home)


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
    version: str, rendering_helm: Helm, custom_schemas: Path, tmp_path: Path
) -> None:
    for values in VALUE_SETS:
        items = rendering_helm.template("rel", "ns", values)
        (tmp_path / f"{values}.yaml").write_text(yaml.safe_dump_all(items))
    summary = _conform(version, custom_schemas, tmp_path)
    assert summary["resources"] == []  # those that are at fault
    counts = summary["summary"]
    assert (counts["invalid"], counts["errors"], counts["skipped"]) == (0, 0, 0)
    assert counts["valid"] > 10 * len(VALUE_SETS)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("Deployment", "additional properties 'replica' not allowed"),
     ("RayCluster", "additional properties 'replica' not allowed")],
)  # fmt: skip
def test_a_field_that_no_kind_has_is_found(
    kind: str, said: str, rendering_helm: Helm, custom_schemas: Path, tmp_path: Path
) -> None:
    items = rendering_helm.template("rel", "ns", "everything")
    item = next(item for item in items if item["kind"] == kind)
    item["spec"]["replica"] = 3
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(item))
    [found] = _conform("1.34.0", custom_schemas, tmp_path)["resources"]
    assert found["status"] == "statusInvalid"
    assert said in found["msg"]


def test_helm_lints_the_chart(rendering_helm: Helm) -> None:
    for values, path in VALUE_SETS.items():
        words = ("--values", str(path)) if path else ()
        said = rendering_helm("lint", "--strict", str(CHART), *words)
        assert "0 chart(s) failed" in said, values


def _conform(version: str, custom_schemas: Path, folder: Path) -> dict:
    program = tool_or_skip("kubeconform")
    own = f"{_SCHEMAS}/v{version}-local{{{{ .StrictSuffix }}}}"
    done = subprocess.run(
        [program, "-strict", "-summary", "-output=json", f"-kubernetes-version={version}",
         f"-schema-location={own}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json",
         f"-schema-location={custom_schemas}/{{{{ .ResourceKind }}}}-"
         "{{ .ResourceAPIVersion }}.json", folder],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return json.loads(done.stdout)


def _closed(schema: dict) -> dict:
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
