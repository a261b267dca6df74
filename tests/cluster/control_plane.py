"""Kubernetes' own control plane as processes on loopback: kine, kube-apiserver,
kube-controller-manager and kube-scheduler. There is no kubelet; `fake_nodes.py` stands in for it.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster.processes import Process, answers, free_port, listens

PROGRAMS = ("kine", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_START_S = 180  # of each program, on a busy machine
_ISSUER = "https://kubernetes.default.svc.cluster.local"
NODE = "worker"  # the name that a kubelet has to have
_COMPONENTS = ("kube-controller-manager", "kube-scheduler")


@dataclass(frozen=True)
class ControlPlane:
    """A running one, as its administrator sees it."""

    url: str
    folder: Path  # logs, keys, kubeconfigs
    tokens: Mapping[str, str]  # by user

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    @property
    def authority(self) -> Path:
        """Certificate that the API server is verified with."""
        return self.folder / "certificates" / "apiserver.crt"

    @cached_property
    def client(self) -> Any:
        """A kubernetes.client.ApiClient of the administrator: `CoreV1Api(plane.client)`."""
        return self.client_of(self.tokens["admin"])

    def client_of(self, token: str) -> Any:
        """A kubernetes.client.ApiClient of whom the token belongs to."""
        from kubernetes import client

        configuration = client.Configuration()
        configuration.host = self.url
        configuration.ssl_ca_cert = str(self.authority)
        configuration.api_key = {"authorization": f"Bearer {token}"}
        return client.ApiClient(configuration)

    def write_kubeconfig(self, user: str, token: str) -> Path:
        path = self.folder / f"{user}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": user, "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                    "current-context": "test",
                }
            )
        )
        path.chmod(0o600)
        return path


@contextmanager
def control_plane(programs: Mapping[str, Path], folder: Path) -> Iterator[ControlPlane]:
    """A new cluster, empty, for as long as the block runs. `programs`: each of `PROGRAMS`.

    Raises RuntimeError with the end of its log where a program does not start.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        datastore = free_port()
        kine = [
            str(programs["kine"]),
            f"--endpoint=sqlite://{folder}/state.db?_journal=WAL&cache=shared&_synchronous=0",
            f"--listen-address=127.0.0.1:{datastore}",
            "--metrics-bind-address=0",
        ]
        process = stack.enter_context(Process("kine", kine, folder))
        process.wait_until(lambda: listens(datastore), _START_S)

        port = free_port()
        users = {"admin": "system:masters", f"system:node:{NODE}": "system:nodes"}
        users |= {f"system:{name}": "" for name in _COMPONENTS}
        tokens = {user: secrets.token_hex(16) for user in users}
        plane = ControlPlane(f"https://127.0.0.1:{port}", folder, tokens)
        _write_keys(folder)
        _private(
            folder / "tokens.csv",
            "".join(f'{tokens[user]},{user},{user},"{users[user]}"\n' for user in users),
        )
        words = [str(programs["kube-apiserver"]), *_apiserver_flags(folder, datastore, port)]
        process = stack.enter_context(Process("kube-apiserver", words, folder))
        ready = f"{plane.url}/readyz"
        process.wait_until(lambda: answers(ready, tokens["admin"]), _START_S)
        plane.write_kubeconfig("admin", tokens["admin"])
        _say(f"kube-apiserver is ready after {time.monotonic() - started:.1f} s")

        for name in _COMPONENTS:
            kubeconfig = plane.write_kubeconfig(name, tokens[f"system:{name}"])
            own = free_port()
            words = [
                str(programs[name]),
                *_shared_flags(kubeconfig, own),
                *(_controller_flags(plane) if name == "kube-controller-manager" else []),
            ]
            process = stack.enter_context(Process(name, words, folder))
            healthy = f"https://127.0.0.1:{own}/healthz"
            process.wait_until(lambda url=healthy: answers(url), _START_S)
        _say(f"the control plane is ready after {time.monotonic() - started:.1f} s")
        yield plane


def _apiserver_flags(folder: Path, datastore: int, port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{datastore}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        "--endpoint-reconciler-type=none",  # pods reach no address of loopback
        "--service-cluster-ip-range=10.96.0.0/16",
        "--kubelet-preferred-address-types=InternalIP",  # no server knows a node's name
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction,PodSecurity",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--service-account-issuer={_ISSUER}",
        f"--service-account-key-file={folder / 'accounts.pub'}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        "--profiling=false",
    ]


def _shared_flags(kubeconfig: Path, port: int) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]


def _controller_flags(plane: ControlPlane) -> list[str]:
    return [
        "--use-service-account-credentials",  # each controller with its own rights, as installed
        f"--service-account-private-key-file={plane.folder / 'accounts.key'}",
        f"--root-ca-file={plane.authority}",
        "--node-monitor-grace-period=1h",  # fake nodes have no heartbeat
        "--resource-quota-sync-period=5s",
    ]


def _write_keys(folder: Path) -> None:
    """What service accounts' tokens are signed with, and checked."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    _private(folder / "accounts.key", secret.decode())
    (folder / "accounts.pub").write_bytes(public)


def _private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)
