"""What a kubelet, a container runtime and a volume provisioner would say of pods and claims.

Nothing runs: a pod that was scheduled is Running and Ready at once, and stays so until `finish`;
a pod that is to go is gone; a claim gets a volume.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

from tests.cluster.api import Api, Object, Refused

_EVERY_S = 0.2
_GPU = "nvidia.com/gpu"
STORAGE_CLASSES = ("standard", "gp3")  # the first is the default


class FakeNodes:
    """Two nodes, `cpu` and `gpu` (tainted as GPU nodes are), that bear whatever comes."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._addresses = (f"10.244.{number // 250}.{number % 250 + 1}" for number in count())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-nodes", daemon=True)

    def __enter__(self) -> FakeNodes:
        for name in STORAGE_CLASSES:
            self._api.create(_storage_class(name))
        for node in (_node("cpu"), _node("gpu", gpus=8)):
            self._api.create(node)
            self._api.patch("Node", node["metadata"]["name"], _node_status(node), part="status")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def finish(self, namespace: str, pod: str, exit_code: int = 0) -> None:
        """The containers of a pod end, as they would with this exit code."""
        found = self._api.get("Pod", pod, namespace)
        ended = {
            "exitCode": exit_code,
            "reason": "Error" if exit_code else "Completed",
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        self.set_status(
            namespace,
            pod,
            {
                "phase": "Failed" if exit_code else "Succeeded",
                "conditions": _conditions(ready=False),
                "containerStatuses": _containers(found, {"terminated": ended}, ready=False),
            },
        )

    def set_status(self, namespace: str, pod: str, status: Object) -> None:
        """Any status: `{"phase": "Failed", "reason": "Evicted"}`."""
        self._api.patch("Pod", pod, {"status": status}, namespace, part="status")

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self._look()
            except Exception as error:  # a thread's error is seen nowhere else
                print(f"fake nodes: {error!r}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        for pod in self._api.everywhere("Pod"):
            with _unless_changed():
                self._care_for(pod)
        for claim in self._api.everywhere("PersistentVolumeClaim"):
            if claim["status"].get("phase") == "Pending" and "volumeName" not in claim["spec"]:
                with _unless_changed():
                    self._api.create(_volume(claim))
        for volume in self._api.everywhere("PersistentVolume"):
            if volume["status"].get("phase") == "Released":
                with _unless_changed():
                    self._api.delete("PersistentVolume", volume["metadata"]["name"])

    def _care_for(self, pod: Object) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        if "nodeName" not in pod["spec"]:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._api.delete("Pod", name, namespace, gracePeriodSeconds="0")
        elif pod["status"]["phase"] == "Pending":
            address = next(self._addresses)
            running = {"running": {"startedAt": _now()}}
            status = {
                "phase": "Running",
                "hostIP": "127.0.0.1",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "startTime": _now(),
                "conditions": _conditions(ready=True),
                "containerStatuses": _containers(pod, running, ready=True),
            }
            self.set_status(namespace, name, status)


@contextlib.contextmanager
def _unless_changed() -> Iterator[None]:
    """What was listed may be gone, changed or made meanwhile: the next look sees it."""
    try:
        yield
    except Refused as error:
        if error.status not in (404, 409):
            raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(ready: bool) -> list[Object]:
    states = {"Initialized": True, "PodScheduled": True, "ContainersReady": ready, "Ready": ready}
    return [
        {"type": kind, "status": str(state), "lastTransitionTime": _now()}
        for kind, state in states.items()
    ]


def _containers(pod: Object, state: Object, ready: bool) -> list[Object]:
    return [
        {
            "name": each["name"],
            "image": each["image"],
            "imageID": "",
            "ready": ready,
            "started": ready,
            "restartCount": 0,
            "state": state,
        }
        for each in pod["spec"]["containers"]
    ]


def _node(name: str, gpus: int = 0) -> Object:
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": f"zone-{name}",
    }
    if gpus:
        labels["nvidia.com/gpu.product"] = "NVIDIA-H100"
    taints = [{"key": _GPU, "effect": "NoSchedule"}] if gpus else []
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {"capacity": {_GPU: str(gpus)}},
    }


def _node_status(node: Object) -> dict[str, Any]:
    room = {"cpu": "512", "memory": "4Ti", "pods": "500", "ephemeral-storage": "10Ti"}
    room |= node["status"]["capacity"]
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    times = {"lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
    return {"status": {"capacity": room, "allocatable": room, "conditions": [ready | times]}}


def _storage_class(name: str) -> Object:
    default = "true" if name == STORAGE_CLASSES[0] else "false"
    marks = {"storageclass.kubernetes.io/is-default-class": default}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": marks},
        "provisioner": "kubernetes.io/no-provisioner",
    }


def _volume(claim: Object) -> Object:
    metadata, spec = claim["metadata"], claim["spec"]
    owner = {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"for-{metadata['uid']}"},
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "storageClassName": spec["storageClassName"],
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **owner},
            "hostPath": {"path": "/nowhere"},
        },
    }
