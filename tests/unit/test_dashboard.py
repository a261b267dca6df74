"""The chart's dashboard: each query asks for what is really exported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ray_jobs.job_metrics import COUNTERS, GAUGES
from ray_jobs.monitoring.recorder import Recorder
from ray_jobs.serving.app import create_app
from ray_jobs.serving.model import load_model
from ray_jobs.serving.service import Service
from ray_jobs.serving.variants import Challenger
from ray_jobs.storage import Storage
from tests.dashboard import Exported, Query, dashboard, exported_by, panels, queries
from tests.unit.serving_models import PUBLISHED, fire_folder, post, wait_for

_OF_JOBS = {f"ray_{name}": set(labels) for name, (_, labels) in {**GAUGES, **COUNTERS}.items()}


def _of_ray() -> list[Query]:
    return [query for query in queries() if all(name.startswith("ray_") for name in query.metrics)]


def _of_serving() -> list[Query]:
    return [query for query in queries() if query not in _of_ray()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """What the app exports that has answered, refused, recorded, and asked a shadow."""
    records = Recorder(Storage(tmp_path_factory.mktemp("live")), "fire", share=1, max_mb_per_day=1)
    shadow = Challenger(lambda: load_model(fire_folder(), version="8"), "shadow", 1.0)
    service = Service(
        lambda: load_model(fire_folder(), version="7"), {}, challenger=shadow, recorder=records
    )
    with TestClient(create_app(service)) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        assert post(client, PUBLISHED).status_code == 200
        assert post(client, "no row").status_code == 422
        wait_for(lambda: {'outcome="200"', 'outcome="written"'} <= _labels(client))
        yield exported_by(client.get("/metrics").text)


def test_what_is_asked_of_models_is_what_the_app_exports(served: Exported) -> None:
    found = _of_serving()
    assert len(found) > 10
    assert [fault for query in found for fault in query.faults(served)] == []


def test_what_is_asked_of_ray_is_what_its_package_exports() -> None:
    """tests/contract/test_job_metrics.py asks a real cluster, which has no GPU."""
    known = _in_ray_source()
    asked = {name for query in _of_ray() for name in query.metrics} - _OF_JOBS.keys()
    assert len(asked) > 12
    assert asked - known == set()


def test_what_is_asked_of_jobs_is_what_they_export() -> None:
    found = [query for query in _of_ray() if query.metrics.keys() & _OF_JOBS.keys()]
    assert {name for query in found for name in query.metrics} == _OF_JOBS.keys()
    assert [fault for query in found for fault in query.faults(_OF_JOBS)] == []


def test_a_query_that_asks_for_something_else_is_found(served: Exported) -> None:
    for text, said in (
        ('sum(emberline_request_total{code=~"5.."})', "there is no emberline_request_total"),
        ('sum by (model) (emberline_ready{namespace=~"a"})', "emberline_ready has no model"),
        ('sum(emberline_rows_total{role="a"})', "emberline_rows_total has no role"),
    ):
        assert Query("A", text).faults(served) == [f"A: {said}"]


def test_every_panel_can_be_drawn() -> None:
    """Each has its place, what it shows in words, and a legend of labels that its query keeps."""
    variables = {each["name"] for each in dashboard()["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
    for query in queries():
        assert query.metrics, query.text
        assert query.text.count("(") == query.text.count(")")
        assert set(re.findall(r"\$(\w+)", query.text)) - {"__rate_interval", "__range"} <= variables
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= query.grouped_by
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def _labels(client: TestClient) -> set[str]:
    return set(re.findall(r'\w+="\w+"', client.get("/metrics").text))


def _in_ray_source() -> set[str]:
    """Names that Ray's node agent and its own dashboard have, as its package's source says."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent / "dashboard" / "modules"
    agent = (home / "reporter" / "reporter_agent.py").read_text(encoding="utf-8")
    gauges = re.findall(r'Gauge\(\s*"([a-z_]+)"', agent)
    shown = (home / "metrics" / "dashboards" / "default_dashboard_panels.py").read_text("utf-8")
    of_server = {"ray_running_jobs", "ray_finished_jobs_total"}  # compiled: a real cluster has them
    return {f"ray_{name}" for name in gauges} | set(re.findall(r"\bray_[a-z_]+", shown)) | of_server
