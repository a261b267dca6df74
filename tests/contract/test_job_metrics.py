"""Metrics of jobs: what the nodes of a real Ray cluster export while one runs, and the dashboard's
queries of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from ray_jobs.job_metrics import COUNTERS, GAUGES, VARIABLE
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import patiently
from ray_jobs.targets.ray import RayTarget
from ray_jobs.targets.ray_spec import RaySpec
from tests.contract.conftest import Cluster
from tests.dashboard import exported_by, queries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

_JOB = (
    "data.samples=1500",
    "members=[logistic_regression, lstm_classifier]",
    "members.lstm_classifier.epochs=2",
    "resources.num_cpus=2",
    "resources.cpus_per_member=1",
    "tracking.enabled=false",
)
# Of nodes that have GPUs, and of those that an autoscaler starts or has lost.
_ELSEWHERE = {
    "ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available",
    "ray_cluster_pending_nodes", "ray_cluster_failed_nodes",
}  # fmt: skip
_AFTER_S = 40.0  # Ray's nodes tell each 10 s


def test_a_job_is_seen_on_the_dashboard(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "ray")
    settings = RaySpec(address=cluster.address, working_dir=None, env=(VARIABLE,))
    target = RayTarget(settings)
    run = Run.create(load_spec("fire", overrides=_JOB, storage=str(tmp_path)), "measured")
    handle = patiently(lambda: target.submit(run))
    exported: dict[str, set[str]] = {}
    values: dict[str, float] = {}
    deadline = float("inf")
    while time.monotonic() < deadline and not _is_counted(values):
        state = target.status(handle)
        if state.has_ended:
            assert state.status == "SUCCEEDED", (state, list(target.logs(handle)))
            deadline = min(deadline, time.monotonic() + _AFTER_S)
        for page in _pages(cluster):
            for name, labels in exported_by(page).items():
                exported.setdefault(name, set()).update(labels)
            values |= _values(page)
        time.sleep(1)
    assert _is_counted(values), values
    assert {f"ray_{name}" for name in {**GAUGES, **COUNTERS}} <= exported.keys()
    asked = [query for query in queries() if any(name.startswith("ray_") for name in query.metrics)]
    faults = [
        fault
        for query in asked
        if not query.metrics.keys() & _ELSEWHERE
        for fault in query.faults(exported)
    ]
    assert faults == []
    assert values["ray_emberline_epoch"] == 2
    assert values["ray_emberline_members_total"] == 2


def _is_counted(values: dict[str, float]) -> bool:
    return values.get("ray_emberline_runs_total") == 1


def _pages(cluster: Cluster) -> list[str]:
    """/metrics of both nodes, which the head lists for Prometheus."""
    words = psutil.Process(cluster.head.pid).cmdline()
    (folder,) = (word.partition("=")[2] for word in words if word.startswith("--temp-dir="))
    listed = json.loads((Path(folder) / "prom_metrics_service_discovery.json").read_bytes())
    pages = []
    for address in (target for group in listed for target in group["targets"]):
        try:
            pages.append(httpx2.get(f"http://{address}/metrics", timeout=20).text)
        except httpx2.HTTPError:  # the dashboard's, which listens at a port that others may have
            continue
    return pages


def _values(page: str) -> dict[str, float]:
    """Of this project's metrics that have one sample."""
    found = {}
    for line in page.splitlines():
        if line.startswith("ray_emberline_"):
            found[line.partition("{")[0]] = float(line.rpartition(" ")[2])
    return found
