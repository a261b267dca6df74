"""Owners: the pod of a pipeline's step, for whose sake a job runs elsewhere.

Whatever a step starts says whose it is, so that nothing goes on for nobody: a step that is
cancelled stops it, and the reaper stops what a killed or deleted step leaves.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ray_jobs.attempts import PIPELINE_RUN

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAMESPACE_FILE, _AUTHORITY_FILE = _ACCOUNT / "namespace", _ACCOUNT / "ca.crt"
# Of this project's steps, by the downward API; behind them those of KFP's own steps.
_POD = ("EMBERLINE_POD_NAME", "KFP_POD_NAME")
_UID = ("EMBERLINE_POD_UID", "KFP_POD_UID")
_NAMESPACE = ("EMBERLINE_POD_NAMESPACE", "NAMESPACE")
_KFP_RUN = (PIPELINE_RUN,)

KEYS = ("owner-namespace", "owner-pod", "owner-uid", "owner-cluster", "kfp-run")
# Kubernetes, "Object Names and IDs": what a path of its API may be made of.
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Owner:
    """A pod, and the run of Kubeflow Pipelines that it is a step of."""

    namespace: str
    pod: str
    uid: str | None = None  # None: not known; a pod of the same name is then taken for it
    cluster: str | None = None  # `cluster_id` of the one that has the pod
    kfp_run: str | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"

    def fields(self) -> dict[str, str]:
        """As labels, metadata or tags, whose names get a prefix where they are used."""
        values = (self.namespace, self.pod, self.uid, self.cluster, self.kfp_run)
        return {key: value for key, value in zip(KEYS, values, strict=True) if value}


@dataclass(frozen=True)
class OwnedJob:
    """A job that goes on, and whose it is."""

    kind: Literal["rayjob", "ray", "sagemaker"]
    name: str
    owner: Owner
    made_at: datetime | None
    stop: Callable[[], None]  # raises EmberlineError


def parse_owner(fields: Mapping[str, object], prefix: str) -> Owner | None:
    """The owner that labels, metadata or tags name; None if they name none, or none that can be
    asked for."""
    namespace, pod, uid, cluster, kfp_run = (fields.get(f"{prefix}{key}") for key in KEYS)
    for name in (namespace, pod):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return None
    assert isinstance(namespace, str), namespace
    assert isinstance(pod, str), pod
    return Owner(namespace, pod, _id(uid), _id(cluster), _id(kfp_run))


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def this_step(environment: Mapping[str, str] = os.environ) -> Owner | None:
    """The pod in which this process is a step of a pipeline; None elsewhere."""
    found = (
        _first(environment, _NAMESPACE) or pod_namespace(),
        _first(environment, _POD),
        _first(environment, _UID),
        cluster_id(),
        _first(environment, _KFP_RUN),
    )
    return parse_owner(dict(zip(KEYS, found, strict=True)), "")


def this_pod(environment: Mapping[str, str] = os.environ) -> Owner | None:
    """The pod in which this process runs, whatever for; None elsewhere."""
    found = (pod_namespace(), socket.gethostname(), None, cluster_id(), None)
    return this_step(environment) or parse_owner(dict(zip(KEYS, found, strict=True)), "")


def cluster_id(authority: Path = _AUTHORITY_FILE) -> str | None:
    """What tells the cluster of this pod from others: a digest of its API's certificate authority.
    None where there is none, as out of any cluster.

    Services beside Kubernetes are shared by clusters: a pod that one of them does not have may be
    at work in another.
    """
    try:
        return hashlib.sha256(b"".join(authority.read_bytes().split())).hexdigest()[:16]
    except OSError:
        return None


def pod_namespace() -> str | None:
    """The namespace of this pod; None elsewhere, or where a pod has no account mounted."""
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
