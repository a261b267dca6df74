"""The section `rayjob` of a job description: the RayJob of Kubernetes that `target: rayjob`
makes."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_jobs.kubeflow_spec import SecretKey, Toleration, check_labels
from ray_jobs.section import Section

# Kubernetes, "Object Names and IDs"; a namespace is a label of DNS.
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOUNT = re.compile(r"(/[^/\s:]+)+")
_OWN_MOUNTS = ("/tmp", "/home/emberline")  # noqa: S108 - a pod's, that no other pod sees
_OWN_VARIABLES = ("HOME", "USER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_SECRET = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)


class RayPodSpec(Section):
    """What one of Ray's pods gets: requested, and the limit."""

    num_cpus: Annotated[int, Field(ge=1)] = 2
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8
    num_gpus: Annotated[int, Field(ge=0)] = 0
    accelerator: str = "nvidia.com/gpu"  # the resource that num_gpus counts
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []

    _node_labels = field_validator("node_selector")(check_labels)


class RayJobSpec(Section):
    """Where the RayJob is made, and what its pods get.

    Which cluster: KUBECONFIG, or ~/.kube/config, and in a pod the cluster that it is in. A network
    trains on `resources.num_workers` of the pods; a sweep and the members of an ensemble on all.
    """

    context: str | None = None  # of the kubeconfig; default: its current one
    namespace: str | None = None  # default: the context's, or that of this pod
    # The project's own, pushed to where the nodes pull; a pipeline's step has kubeflow.image.
    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: list[str] = []
    python: str = "python"  # in the image
    service_account: str | None = None  # default: the namespace's
    user_id: Annotated[int, Field(ge=1)] = 65532  # of the processes, and the group of the volumes
    env: dict[str, str] = {}  # variables of the pods; no secrets
    secrets: dict[str, SecretKey] = {}  # variable -> where its value lies
    volumes: dict[str, str] = {}  # claim -> where it is mounted in every pod of Ray's
    labels: dict[str, str] = {}  # of the RayJob and its pods
    queue: str | None = None  # Kueue's LocalQueue
    head: RayPodSpec = RayPodSpec()  # the driver runs there
    workers: RayPodSpec = RayPodSpec()
    num_workers: Annotated[int, Field(ge=0)] = 0  # pods beside the head
    num_retries: Annotated[int, Field(ge=1)] = 1  # of a job that fails, each on new pods
    num_submissions: Annotated[int, Field(ge=1)] = 3  # tries to submit it to them
    start_s: Annotated[int, Field(ge=1)] = 1800  # until it runs; a queue's wait counts
    max_run_s: Annotated[int, Field(ge=1)] = 86400  # in all, with retries
    keep_s: Annotated[int, Field(ge=0)] = 60  # its pods, after it has ended
    stop_wait_s: Annotated[int, Field(ge=1)] = 60  # for a checkpoint, and then for the pods' end

    @field_validator("namespace")
    @classmethod
    def _in_a_namespace(cls, name: str | None) -> str | None:
        if name is not None and not _NAMESPACE.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a namespace: small letters, digits, '-'")
        return name

    @field_validator("service_account", "queue")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        return name if name is None else _object_name(name)

    @field_validator("image_pull_secrets")
    @classmethod
    def _secret_names(cls, names: list[str]) -> list[str]:
        return [_object_name(name) for name in names]

    @field_validator("image")
    @classmethod
    def _one_word(cls, image: str | None) -> str | None:
        if image is not None and not re.fullmatch(r"\S+", image):
            raise ValueError(f"{image!r} is not an image, such as registry.example.com/emberline:1")
        return image

    @field_validator("env", "secrets")
    @classmethod
    def _variables(cls, values: dict[str, object]) -> dict[str, object]:
        for name in values:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if name in _OWN_VARIABLES:
                raise ValueError(f"{name} is set by this project or by KubeRay; take it out")
        return values

    @field_validator("env")
    @classmethod
    def _public(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} sounds like a secret, and everyone who may see the RayJob reads it; "
                    f"name a Secret instead: rayjob.secrets.{name}={{secret: NAME, key: KEY}}"
                )
        return env

    @field_validator("volumes")
    @classmethod
    def _mounted(cls, volumes: dict[str, str]) -> dict[str, str]:
        for claim, path in volumes.items():
            _object_name(claim)
            if not _MOUNT.fullmatch(path) or ".." in path.split("/") or path in _OWN_MOUNTS:
                raise ValueError(f"{claim}: {path!r} is not a folder to mount at, such as /data")
        if len(set(volumes.values())) < len(volumes):
            raise ValueError("two claims are mounted at the same path")
        return volumes

    _pod_labels = field_validator("labels")(check_labels)

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        for name in self.env.keys() & self.secrets.keys():
            raise ValueError(f"{name} is set by env and by secrets; keep one")
        if self.start_s > self.max_run_s:
            raise ValueError(
                f"start_s={self.start_s} is over max_run_s={self.max_run_s}; set it below"
            )
        return self


def _object_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of an object of Kubernetes: small letters, digits, '-' and "
            "'.'"
        )
    return name
