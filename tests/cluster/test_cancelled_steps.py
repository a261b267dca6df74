"""A step's RayJob in a real cluster: it ends with its step, however that ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.run import Run
from tests.chaos.step_process import MEMBER, Step, prepared, reap, start_step, wait_until
from tests.cluster import kuberay
from tests.cluster.api import Api, Object, until
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fake_nodes import FakeNodes
from tests.cluster.processes import Process
from tests.go_tools import TOOLS, module_folder, tool_or_skip

_POD = "train-step"


@pytest.fixture(scope="module", autouse=True)
def operator(cluster: ControlPlane, api: Api, nodes: FakeNodes) -> Iterator[Process]:
    source = TOOLS["ray-operator"]
    program = tool_or_skip("ray-operator")
    with kuberay.operator(
        program, module_folder(source.module, source.version), cluster, api
    ) as process:
        yield process


@pytest.fixture(autouse=True)
def _kubeconfig(cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))


@pytest.fixture
def run(tmp_path: Path, namespace: str) -> Run:
    return prepared(
        tmp_path,
        f"members=[{MEMBER}]",
        "kubeflow.train_on=rayjob",
        f"rayjob.namespace={namespace}",
        "rayjob.image=emberline:0.1.0",
        "rayjob.num_workers=1",
    )


@pytest.fixture
def step(api: Api, run: Run, namespace: str, tmp_path: Path) -> Iterator[Step]:
    """Under way: its RayJob has pods."""
    pod = api.create(_step_pod(), namespace)
    until(lambda: _phase(api, namespace) == "Running", "the step's pod runs")
    step = start_step(run, tmp_path / "step", pod["metadata"])
    wait_until(lambda: len(_pods(api, namespace)) >= 2, step.log.read_text, step.process)
    yield step
    if step.process.poll() is None:
        step.signal(signal.SIGKILL)
        step.process.wait()


def test_a_cancelled_step_deletes_it(api: Api, namespace: str, step: Step) -> None:
    step.signal(signal.SIGTERM)
    code, log = step.finish()
    assert code == 143, log
    assert "stopped: nothing of it is left running" in log
    assert api.list("RayJob", namespace) == []
    assert _pods(api, namespace) == []


def test_a_deleted_pod_takes_it_along(api: Api, namespace: str, step: Step) -> None:
    """By Kubernetes' own garbage collector."""
    step.signal(signal.SIGKILL)
    api.delete("Pod", _POD, namespace)
    until(lambda: not api.list("RayJob", namespace), "the RayJob is gone", 90)
    until(lambda: not _pods(api, namespace), "its pods are gone")


def test_a_killed_step_is_reaped(api: Api, nodes: FakeNodes, namespace: str, step: Step) -> None:
    step.signal(signal.SIGKILL)
    [job] = api.list("RayJob", namespace)
    name = job["metadata"]["name"]
    code, told = reap("--grace=0", f"--namespace={namespace}")
    assert (code, told["stopped"], told["left"][0]["name"]) == (0, [], name)
    assert told["left"][0]["reason"] == "its pod is there"

    nodes.finish(namespace, _POD, exit_code=137)
    code, told = reap("--grace=3600", f"--namespace={namespace}")
    assert (code, told["stopped"]) == (0, [])
    assert told["left"][0]["reason"] == "its pod has ended (Failed), but not for 3600 s yet"

    code, told = reap("--grace=0", f"--namespace={namespace}")
    assert (code, [each["name"] for each in told["stopped"]]) == (0, [name])
    until(lambda: not api.list("RayJob", namespace), "the RayJob is gone", 90)
    until(lambda: not _pods(api, namespace), "its pods are gone")


def _phase(api: Api, namespace: str) -> str:
    return api.get("Pod", _POD, namespace).get("status", {}).get("phase", "")


def _pods(api: Api, namespace: str) -> list[Object]:
    """Of the RayJob: all but the step's."""
    return [pod for pod in api.list("Pod", namespace) if pod["metadata"]["name"] != _POD]


def _step_pod() -> Object:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "emberline:0.1.0", "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _POD},
        "spec": {"containers": [container]},
    }
