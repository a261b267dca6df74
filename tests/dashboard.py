"""The queries of the chart's dashboard, taken apart: which metrics and labels they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[1] / "charts" / "emberline" / "dashboards" / "emberline.json"
# That Prometheus adds to what a pod exports: its own, and those that the monitors name.
OF_TARGETS = {
    "namespace", "pod", "emberline_model", "emberline_track", "ray_io_cluster", "ray_io_node_type",
}  # fmt: skip
_SELECTOR = re.compile(r"([a-z_:][a-zA-Z0-9_:]*)\{([^{}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\bby \(([\w, ]*)\)")
_TEXT = re.compile(r'"[^"]*"')

Exported = Mapping[str, set[str]]  # of each sample its labels


@dataclass(frozen=True)
class Query:
    """One query, and where it stands."""

    panel: str
    text: str
    legend: str = ""

    @property
    def metrics(self) -> dict[str, set[str]]:
        """Of each metric the labels that it is chosen by."""
        found: dict[str, set[str]] = {}
        for name, chosen in _SELECTOR.findall(_TEXT.sub('""', self.text)):
            found.setdefault(name, set()).update(_MATCHER.findall(chosen))
        return found

    @property
    def grouped_by(self) -> set[str]:
        return {
            label
            for labels in _GROUPING.findall(self.text)
            for label in labels.split(", ")
            if label
        }

    def faults(self, exported: Exported) -> list[str]:
        """What it asks for, of the metrics that are exported, and would not be given."""
        found = []
        for name, labels in self.metrics.items():
            if name not in exported:
                found.append(f"{self.panel}: there is no {name}")
            elif missing := (labels | self.grouped_by) - exported[name] - OF_TARGETS:
                found.append(f"{self.panel}: {name} has no {', '.join(sorted(missing))}")
        return found


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    for panel in panels():
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"], target["legendFormat"])


def exported_by(text: str) -> dict[str, set[str]]:
    """What a /metrics page holds; of a metric that has no sample yet, its name alone."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
