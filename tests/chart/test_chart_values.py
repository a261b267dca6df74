"""What may be set: the schema, that each value does something, and the page that lists them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml
from chart_readme import described_values, readme
from rendered_chart import CHART, VALUE_SETS, render, render_text, values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_bytes())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
GROUP = {
    "resources": {
        "requests": {"cpu": 1, "memory": "1Gi"},
        "limits": {"cpu": 1, "memory": "1Gi"},
    }
}


# The schema


def test_no_unknown_key_passes_anywhere() -> None:
    """Every mapping of the schema lists its keys, or says what all of its values are."""
    found = 0
    for place, each in _mappings(SCHEMA):
        assert each.get("additionalProperties") is False or isinstance(
            each.get("additionalProperties"), dict
        ), place
        found += 1
    assert found > 40


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"serviing": {}}, "serviing"),
        ({"mlflow": {"worker": 3}}, "worker"),
        ({"serving": {"models": [{"name": "fire", "versoin": 7}]}}, "versoin"),
        ({"ray": {"workerGroups": {"cpu": {**GROUP, "gpu": 1}}}}, "gpu"),
        ({"networkPolicy": {"mlflowClients": [{"podSelektor": {}}]}}, "podSelektor"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"storage": {"uri": "/data"}}, "uri"),
        ({"serving": {"replicas": 0}}, "replicas"),
        ({"serving": {"terminationGracePeriodSeconds": 30}}, "terminationGracePeriodSeconds"),
        ({"ray": {"version": "2.51.0"}}, "version"),
        ({"mlflow": {"trackingUri": "https://user:password@mlflow.example.com"}}, "trackingUri"),
        ({"signing": {"publicKeys": {"a.pub": "-----BEGIN PRIVATE KEY-----"}}}, "publicKeys"),
        ({"ray": {"workerGroups": {"cpu": None, "big": {"maxReplicas": 2}}}}, "resources"),
        (
            {
                "retrain": {
                    "jobs": [{"workload": "fire", "schedule": "nightly", "data": ["s3://a"]}]
                }
            },
            "schedule",
        ),
        ({"reaper": {"schedule": "soon"}}, "schedule"),
        ({"reaper": {"namespaces": ["Team A"]}}, "namespaces"),
        ({"logs": {"format": "yaml"}}, "format"),
        ({"monitoring": {"dashboard": {"label": {}}}}, "label"),
    ],
)
def test_what_the_schema_refuses_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        render(values)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_schema_takes_every_set(name: str) -> None:
    """By another validator than Helm's, so that the schema is good in itself."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(_merged(DEFAULTS, values_of(name)))


def test_the_schema_knows_every_default() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], place: str) -> None:
        schema = _resolved(schema)
        if "properties" in schema:
            assert set(values) == set(schema["properties"]) - {"global"} - _optional(place), place
            for key, value in values.items():
                if isinstance(value, dict):
                    compare(value, schema["properties"][key], f"{place}.{key}")

    compare(DEFAULTS, SCHEMA, "")


# Values have an effect, and are described

# Of values that can be anything: what a test sets in their place.
_OTHER_VALUES: dict[str, Any] = {
    "image.tag": "2.0", "image.pullPolicy": "Always", "image.digest": "sha256:" + "0" * 64,
    "postgresql.image.tag": "16", "postgresql.image.digest": "sha256:" + "0" * 64,
    "storage.uri": "s3://another", "storage.endpointUrl": "http://s3.example.com:9000",
    "storage.region": "us-east-1", "fullnameOverride": "other",
    "signing.publicKeys": {}, "mlflow.trackingUri": "https://mlflow.example.com",
    "mlflow.allowedHosts": ["a.example.com"], "mlflow.database.sslMode": "verify-ca",
    "nodeSelector": {"a": "b"}, "commonLabels": {"a": "b"}, "tolerations": [{"key": "a"}],
    "imagePullSecrets": ["a"], "serving.models": [], "ray.workerGroups": {"other": GROUP},
    "ray.version": "2.61.0", "ray.gcsFaultTolerance.redisAddress": "other:6379",
    "webhook.models": ["waste"], "webhook.overrides": ["a.b=c"], "retrain.jobs": [],
    "pipelines.subjects": [], "reaper.schedule": "@hourly", "reaper.namespaces": ["team-a"],
    "logs.format": "text", "monitoring.dashboard.labels": {"a": "b"},
    "monitoring.interval": "1m", "monitoring.labels": {"a": "b"},
    "ingress.annotations": {"a": "b"}, "gateway.parentRefs": [{"name": "other"}],
    "serving.recordShare": 0.5,
    "mlflow.persistence.size": "1Gi", "postgresql.persistence.size": "1Gi",
}  # fmt: skip
_BASES = ("everything", "external-database", "gateway", "autoscaling", "default")


def test_every_value_has_an_effect() -> None:
    """Another value changes an object, or is refused for a reason, in one of these sets."""
    without, as_is = [], {base: _outcome(values_of(base)) for base in _BASES}
    for path, default in _leaves(DEFAULTS, ""):
        for base in _BASES:
            values = values_of(base)
            changed = copy.deepcopy(values)
            _set(changed, path, _other(path, _get(_merged(DEFAULTS, values), path, default)))
            if _outcome(changed) != as_is[base]:
                break
        else:
            without.append(path)
    assert without == []


def test_the_readme_is_that_of_the_values() -> None:
    """`make chart-readme` writes it anew."""
    assert (CHART / "README.md").read_text(encoding="utf-8") == readme()


def test_what_is_not_plain_is_described() -> None:
    plain = ("resources", "requests", "limits", "annotations", "enabled", "size", "tag")
    plain += ("minReplicas", "maxReplicas")
    assert [
        key for key, _, said in described_values() if not said and not key.endswith(plain)
    ] == []


def test_the_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{chart["appVersion"]}"\n' in project


# Helpers


def _mappings(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and place != ".properties.global":
            yield place, schema
        for key, value in schema.items():
            yield from _mappings(value, f"{place}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _mappings(value, place)


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.rsplit("/", 1)[1]] if reference else schema


def _optional(place: str) -> set[str]:
    return {"pullPolicy"} if place == ".postgresql.image" else set()


def _merged(defaults: Any, given: Any) -> Any:
    if not isinstance(defaults, dict) or not isinstance(given, dict):
        return given
    return {
        key: _merged(defaults.get(key), given[key]) if key in given else defaults[key]
        for key in [*defaults, *(key for key in given if key not in defaults)]
        if given.get(key, "") is not None  # null takes a default away
    }


def _leaves(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = f"{path}{key}"
        if isinstance(value, dict) and value and whole != "ray.workerGroups":
            yield from _leaves(value, f"{whole}.")
        else:
            yield whole, value


def _other(path: str, value: Any) -> Any:
    if path in _OTHER_VALUES:
        return _OTHER_VALUES[path]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return (
                "777m" if path.endswith("cpu") else "777Mi" if path.endswith("memory") else "other"
            )
        case dict():
            return {"a": "b"}
    assert isinstance(value, list)
    if path.endswith("Ports"):
        return [9]
    return [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def _get(values: dict[str, Any], path: str, default: Any) -> Any:
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return default
        values = values[key]
    return values


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[last] = value


def _outcome(values: dict[str, Any]) -> list[str] | str:
    try:
        return render_text(values)
    except (
        helm_python.HelmRenderError
    ) as refused:  # by a check; the schema's refusals are no effect
        return str(refused)
