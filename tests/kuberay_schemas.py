"""The schemas of KubeRay's objects, for checks with no cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

CRD_FOLDER = Path(
    os.environ.get("EMBERLINE_TEST_CRDS", Path(__file__).parents[2] / "shared" / "crds")
)


def crd_schema(plural: str) -> Mapping[str, Any]:
    """The schema of ray.io/v1, strict: an object that lists its properties has no others."""
    path = CRD_FOLDER / f"kuberay-v1.7.0-{plural}.json"
    if not path.is_file():
        pytest.skip(f"no CRD at {path} (EMBERLINE_TEST_CRDS names the folder that holds it)")
    versions = json.loads(path.read_bytes())["spec"]["versions"]
    [schema] = [each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1"]
    schema["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata", "status")}
    for each in _objects_within(schema):
        if "properties" in each and not each.get("x-kubernetes-preserve-unknown-fields"):
            each["additionalProperties"] = False
    return schema


def _objects_within(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from _objects_within(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects_within(value)
