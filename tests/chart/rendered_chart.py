"""The chart as its tests see it: rendered by Helm's own code, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "emberline"
RELEASE, NAMESPACE = "rel", "ns"
VALUE_SETS = {"default": None} | {
    path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))
}

OLDEST = "1.29"  # Kubernetes, as Chart.yaml says
each_set = pytest.mark.parametrize("name", VALUE_SETS)

Object = dict[str, Any]


@dataclass(frozen=True)
class PodTemplate:
    """A pod that an object of the chart, or KubeRay for it, makes."""

    owner: str  # "Deployment/rel-emberline-mlflow"
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def values_of(name: str) -> dict[str, Any]:
    path = VALUE_SETS[name]
    return yaml.load(path.read_bytes(), yaml.CSafeLoader) if path else {}


@cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any], release: str = RELEASE) -> list[Object]:
    """Every object that the values make. Raises helm_python.HelmError where they are refused."""
    texts = render_text(values, release)
    return [item for text in texts for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def render_text(values: Mapping[str, Any], release: str = RELEASE) -> list[str]:
    files = _chart().render(dict(values), name=release, namespace=NAMESPACE)
    return [text for name, text in files.items() if not name.endswith("NOTES.txt")]


def notes(values: Mapping[str, Any]) -> str:
    """What `helm install` says at its end."""
    files = _chart().render(dict(values), name=RELEASE, namespace=NAMESPACE)
    return next(text for name, text in files.items() if name.endswith("NOTES.txt"))


@cache
def objects(name: str) -> tuple[Object, ...]:
    """Those of one of `VALUE_SETS`."""
    return tuple(render(values_of(name)))


def of_kind(items: tuple[Object, ...] | list[Object], *kinds: str) -> list[Object]:
    return [item for item in items if item["kind"] in kinds]


def pod_templates(items: tuple[Object, ...] | list[Object]) -> Iterator[PodTemplate]:
    for item in items:
        spec = item.get("spec", {})
        match item["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                templates = [spec["template"]]
            case "CronJob":
                templates = [spec["jobTemplate"]["spec"]["template"]]
            case "RayCluster":
                groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
                templates = [group["template"] for group in groups]
                if "autoscalerOptions" in spec:  # KubeRay puts a second container into the head
                    own = {"name": "autoscaler", **spec["autoscalerOptions"]}
                    head = templates[0]
                    pod = head["spec"] | {"containers": [*head["spec"]["containers"], own]}
                    templates[0] = head | {"spec": pod}
            case _:
                templates = []
        for template in templates:
            owner = f"{item['kind']}/{item['metadata']['name']}"
            yield PodTemplate(owner, template["metadata"]["labels"], template["spec"])
