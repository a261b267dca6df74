"""One real node: containerd with runc, a kubelet and a name server, all in this process's own
network namespace, with nothing left on the machine after it.

Source: Kubernetes, "Kubelet Configuration (v1beta1)"; containerd 1.6, docs/cri/config.md.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.api import Api, Refused
from tests.cluster.control_plane import NODE, ControlPlane
from tests.cluster.node.images import Image
from tests.cluster.processes import Process

PROGRAMS = ("containerd", "ctr", "runc", "dnsmasq", "ip")
_ADDRESS, _NETWORK = "10.88.0.1", "10.88.0.0/16"  # of the bridge that the pods are on
_BRIDGE = "pods0"
_PLUGINS = Path("/usr/lib/cni")
_PAUSE = "localhost/pause:1"
_START_S = 120
_CGROUPS = Path("/sys/fs/cgroup")


def missing() -> str | None:
    """Why there can be no node here; None where there can."""
    if os.geteuid() != 0:
        return "a node needs root"
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        return "a node needs a network and mounts of its own: make node-test"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent or not (_PLUGINS / "bridge").exists():
        return (
            f"a node needs {', '.join(absent) or 'the plugins of CNI'}: apt-get install containerd "
            "runc containernetworking-plugins dnsmasq-base iproute2"
        )
    return None


@dataclass(frozen=True)
class Machine:
    """What is at hand of the node, beside what the API server says of it."""

    folder: Path

    @property
    def _socket(self) -> Path:
        return self.folder / "containerd.sock"

    def load(self, archive: Path) -> None:
        """Take images from an archive as docker, podman and buildah write them."""
        self.ctr("images", "import", str(archive))

    def ctr(self, *words: str) -> str:
        """Raises CalledProcessError."""
        command = ["ctr", f"--address={self._socket}", "--namespace=k8s.io", *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=600
        ).stdout


@contextmanager
def machine(kubelet: Path, pause: Image, plane: ControlPlane, api: Api) -> Iterator[Machine]:
    """A node named `NODE` that is Ready while the block runs.

    Raises RuntimeError with the end of its log where a program does not start.
    """
    folder = plane.folder / "node"
    folder.mkdir()
    place = Machine(folder)
    with ExitStack() as stack:
        stack.callback(_clean_up, folder)
        stack.enter_context(_names(folder, api))
        config = folder / "containerd.toml"
        config.write_text(_containerd_config(folder))
        containerd = Process("containerd", ["containerd", f"--config={config}"], folder)
        stack.enter_context(containerd)
        containerd.wait_until(lambda: _answers(place), _START_S)
        place.load(pause.write(folder / "pause.tar", _PAUSE))

        settings = folder / "kubelet.yaml"
        settings.write_text(yaml.safe_dump(_kubelet_config(folder)))
        kubeconfig = plane.write_kubeconfig("kubelet", plane.tokens[f"system:node:{NODE}"])
        words = [
            str(kubelet), f"--config={settings}", f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NODE}", f"--node-ip={_ADDRESS}",
            f"--root-dir={folder / 'kubelet'}", f"--cert-dir={folder / 'certificates'}",
            "--v=2",
        ]  # fmt: skip
        process = stack.enter_context(Process("kubelet", words, folder))
        process.wait_until(lambda: _is_ready(api), _START_S)
        stack.callback(_end_pods, api)
        yield place


def _containerd_config(folder: Path) -> str:
    network = folder / "cni"
    network.mkdir()
    (network / "10-pods.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "0.4.0",
                "name": "pods",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": _BRIDGE,
                        "isGateway": True,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(folder / "addresses"),
                            "ranges": [[{"subnet": _NETWORK}]],
                            "routes": [{"dst": "0.0.0.0/0"}],
                        },
                    }
                ],
            }
        )
    )
    return f"""version = 2
root = "{folder}/containerd"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{_PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_PLUGINS}"
conf_dir = "{network}"
"""


def _kubelet_config(folder: Path) -> Mapping[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": _ADDRESS,
        # The API server asks for logs without a certificate; nobody else is in this network.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "healthzPort": 0,
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "podLogsDir": str(folder / "logs"),
        "clusterDNS": [_ADDRESS],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 30,
        "featureGates": {"KubeletInUserNamespace": True},  # /proc/sys cannot be written here
    }


def lay_bridge() -> None:
    """The network of the pods, and the default route that Kubernetes' programs look for."""
    for words in (
        ["link", "add", _BRIDGE, "type", "bridge"],
        ["addr", "add", f"{_ADDRESS}/{_NETWORK.split('/')[1]}", "dev", _BRIDGE],
        ["link", "set", _BRIDGE, "up"],
        ["route", "add", "default", "dev", _BRIDGE],
    ):
        subprocess.run(["ip", *words], check=True, timeout=20)


@contextmanager
def _names(folder: Path, api: Api) -> Iterator[None]:
    """A name server that knows headless Services, whose addresses are those of pods."""
    hosts = folder / "hosts"
    hosts.mkdir()
    words = [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root",
        "--no-resolv", "--no-hosts", f"--hostsdir={hosts}", f"--listen-address={_ADDRESS}",
        "--bind-interfaces", "--log-facility=-",
    ]  # fmt: skip
    ended = threading.Event()

    def follow() -> None:
        known: dict[str, str] = {}
        while not ended.wait(0.5):
            for name, address in _addresses(api).items():
                if known.get(name) != address:
                    (hosts / name).write_text(f"{address} {name}\n")
                    known[name] = address

    with Process("dnsmasq", words, folder), _resolver(folder):
        thread = threading.Thread(target=follow, name="names", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(30)


@contextmanager
def _resolver(folder: Path) -> Iterator[None]:
    """The name server is asked by this namespace's processes too, such as KubeRay's operator."""
    settings = folder / "resolv.conf"
    settings.write_text(f"nameserver {_ADDRESS}\n")
    subprocess.run(["mount", "--bind", settings, "/etc/resolv.conf"], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "/etc/resolv.conf"], check=True, timeout=20)


def _addresses(api: Api) -> dict[str, str]:
    found = {}
    for each in api.everywhere("EndpointSlice"):
        service = each["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        for endpoint in each.get("endpoints") or []:
            if service and endpoint.get("addresses"):
                name = f"{service}.{each['metadata']['namespace']}.svc.cluster.local"
                found[name] = endpoint["addresses"][0]
    return found


def _answers(place: Machine) -> bool:
    try:
        place.ctr("version")
    except subprocess.CalledProcessError:
        return False
    return True


def _is_ready(api: Api) -> bool:
    try:
        conditions = api.get("Node", NODE)["status"]["conditions"]
    except Refused:
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _end_pods(api: Api) -> None:
    """Before their kubelet ends, as nobody would end them after it."""
    from tests.cluster.api import until

    for pod in api.list("Pod"):
        api.delete("Pod", pod["metadata"]["name"], pod["metadata"]["namespace"])
    until(lambda: not api.list("Pod"), "no pod is left", 90)


def _clean_up(folder: Path) -> None:
    """What containerd and the kubelet leave: mounts, processes beside runc's, cgroups."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([each for each in mounts if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False, timeout=20)
    for pods in _CGROUPS.glob("*/kubepods"):
        for group in sorted(pods.rglob("*/"), reverse=True):
            group.rmdir()
        pods.rmdir()
