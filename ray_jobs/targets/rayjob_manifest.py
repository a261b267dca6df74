"""A run, or a part of one, as the RayJob that carries it out.

`K8sJobMode` with a backoff limit and both deadlines: in the other modes a job may hang, or a
healthy one be ended. Every pod meets the Pod Security Standard `restricted`, with a read-only root.

Source: KubeRay v1.7.0, "RayJob" and "RayCluster" (ray.io/v1); Kubernetes, "Pod Security Standards".
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from ray_jobs.errors import SpecError
from ray_jobs.kubeflow_spec import Toleration
from ray_jobs.owners import KEYS, Owner
from ray_jobs.parts import job_words
from ray_jobs.run import Run
from ray_jobs.targets.rayjob_spec import RayJobSpec, RayPodSpec
from ray_jobs.targets.rayjob_status import PREFIX

NAME_LABEL, ROLE_LABEL, OWNED_LABEL = (f"{PREFIX}{key}" for key in ("rayjob", "role", "owned"))
WORKLOAD, RUN_ID, STORAGE, PART = (
    f"{PREFIX}{key}" for key in ("workload", "run-id", "storage", "part")
)
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_HOME = "/home/emberline"
_SCRATCH = {"tmp": ("/tmp", "20Gi"), "home": (_HOME, "10Gi")}  # noqa: S108 - a pod's own
_SUBMITTER_RESOURCES = {"cpu": "1", "memory": "1Gi"}
_PASSED_ON = (
    "MLFLOW_TRACKING_URI", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3",
    "EMBERLINE_LOG_FORMAT", "EMBERLINE_METRICS",
)  # fmt: skip
NO_IMAGE = (
    "rayjob.image is required: --set rayjob.image=REGISTRY/emberline:TAG, an image of the "
    "project's Dockerfile that the nodes can pull"
)
Role = Literal["head", "worker", "submitter"]


@dataclass(frozen=True)
class RayJob:
    """What a RayJob is made of."""

    name: str
    command: Sequence[str]
    settings: RayJobSpec
    identity: Mapping[str, str]  # annotations: whose run it is
    environment: Mapping[str, str]  # beside the settings'
    owner: Owner | None = None

    def manifest(self, namespace: str) -> dict[str, Any]:
        """The object, as the API takes it."""
        settings = self.settings
        metadata: dict[str, Any] = {
            "name": self.name,
            "labels": {**self._labels(), **_queue(settings), **_owner_labels(self.owner)},
            "annotations": {**self.identity, **_owner_annotations(self.owner)},
        }
        if references := _owner_references(self.owner, namespace):
            metadata["ownerReferences"] = references
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata,
            "spec": {
                "submissionMode": "K8sJobMode",
                "entrypoint": shlex.join(self.command),
                "backoffLimit": settings.num_retries,
                "preRunningDeadlineSeconds": settings.start_s,
                "activeDeadlineSeconds": settings.max_run_s,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": settings.keep_s,
                "submitterConfig": {"backoffLimit": settings.num_submissions - 1},
                "submitterPodTemplate": self._submitter(),
                "rayClusterSpec": self._cluster(),
            },
        }

    def _cluster(self) -> dict[str, Any]:
        settings = self.settings
        cluster: dict[str, Any] = {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0"},  # noqa: S104 - in its own pod
                "template": self._ray_pod("head", settings.head),
            },
        }
        if settings.num_workers:
            number = settings.num_workers
            cluster["workerGroupSpecs"] = [
                {
                    "groupName": "workers",
                    "replicas": number,
                    "minReplicas": number,
                    "maxReplicas": number,
                    "rayStartParams": {},
                    "template": self._ray_pod("worker", settings.workers),
                }
            ]
        return cluster

    def _ray_pod(self, role: Role, pod: RayPodSpec) -> dict[str, Any]:
        settings = self.settings
        resources = {"cpu": str(pod.num_cpus), "memory": f"{int(pod.memory_gb * 1024)}Mi"}
        tolerations = [_toleration(each) for each in pod.tolerations]
        if pod.num_gpus:
            resources[pod.accelerator] = str(pod.num_gpus)
            tolerations.append(
                {"key": pod.accelerator, "operator": "Exists", "effect": "NoSchedule"}
            )
        values = {**self.environment, **settings.env}
        env: list[dict[str, Any]] = [
            {"name": name, "value": value} for name, value in values.items()
        ]
        env += [
            {
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}},
            }
            for name, source in settings.secrets.items()
        ]
        container = self._container(f"ray-{role}", resources, env)
        container["ports"] = [{"name": "metrics", "containerPort": 8080, "protocol": "TCP"}]
        if role == "head":
            container["ports"] += [
                {"name": name, "containerPort": port, "protocol": "TCP"}
                for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001))
            ]
        template = self._template(role, container)
        for number, (claim, path) in enumerate(settings.volumes.items()):
            container["volumeMounts"].append({"name": f"claim-{number}", "mountPath": path})
            template["spec"]["volumes"].append(
                {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
            )
        if pod.node_selector:
            template["spec"]["nodeSelector"] = dict(pod.node_selector)
        if tolerations:
            template["spec"]["tolerations"] = tolerations
        return template

    def _submitter(self) -> dict[str, Any]:
        """Of `ray job submit`; KubeRay gives its command and the cluster's address."""
        template = self._template(
            "submitter", self._container("ray-job-submitter", _SUBMITTER_RESOURCES, [])
        )
        template["spec"]["restartPolicy"] = "Never"
        return template

    def _container(
        self, name: str, resources: Mapping[str, str], env: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        own = {"HOME": _HOME, "USER": "emberline", "RAY_USAGE_STATS_ENABLED": "0"}
        return {
            "name": name,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "workingDir": _HOME,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "env": [*({"name": key, "value": value} for key, value in own.items()), *env],
            "resources": {"requests": dict(resources), "limits": dict(resources)},
            "volumeMounts": [
                {"name": volume, "mountPath": path} for volume, (path, _) in _SCRATCH.items()
            ],
        }

    def _template(self, role: Role, container: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings
        user = settings.user_id
        spec: dict[str, Any] = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": volume, "emptyDir": {"sizeLimit": size}}
                for volume, (_, size) in _SCRATCH.items()
            ],
        }
        if settings.service_account:
            spec["serviceAccountName"] = settings.service_account
        if settings.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
        return {"metadata": {"labels": {**self._labels(), ROLE_LABEL: role}}, "spec": spec}

    def _labels(self) -> dict[str, str]:
        return {
            **self.settings.labels,
            "app.kubernetes.io/name": "emberline",
            "app.kubernetes.io/component": "rayjob",
            "app.kubernetes.io/managed-by": "emberline",
            NAME_LABEL: self.name,
        }


def rayjob_of(
    run: Run, name: str, settings: RayJobSpec, part: str | None = None, owner: Owner | None = None
) -> RayJob:
    """The RayJob that carries out a run, or the part of it that is named.

    Raises:
        SpecError: `rayjob.image` is missing.
    """
    if settings.image is None:
        raise SpecError(NO_IMAGE)
    identity = {WORKLOAD: run.spec.workload, RUN_ID: run.run_id, STORAGE: run.storage.uri}
    return RayJob(
        name=name,
        command=_command(run, settings, part),
        settings=settings,
        identity=identity if part is None else {**identity, PART: part},
        environment=_environment(settings),
        owner=owner,
    )


def adoption(found: Mapping[str, Any], owner: Owner, namespace: str) -> dict[str, Any]:
    """The changes that have a RayJob belong to another owner; none if it is its already."""
    metadata = found.get("metadata") or {}
    annotations = _owner_annotations(owner)
    known = metadata.get("annotations") or {}
    if all(known.get(key) == value for key, value in annotations.items()):
        return {}
    gone = {f"{PREFIX}{key}": None for key in KEYS}  # of the other, where this one has none
    return {
        "metadata": {
            "labels": {**gone, **_owner_labels(owner)},
            "annotations": {**gone, **annotations},
            "ownerReferences": _owner_references(owner, namespace),
        }
    }


def _command(run: Run, settings: RayJobSpec, part: str | None) -> list[str]:
    """The job; it is told its pods' processors, for a container sees those of its node."""
    num_cpus = None
    if run.spec.resources.num_cpus is None:
        pods = [settings.head.num_cpus, *[settings.workers.num_cpus] * settings.num_workers]
        num_cpus = min(pods) * min(run.spec.resources.num_workers, len(pods))
    return [settings.python, "-m", *job_words(run, part, num_cpus)]


def _environment(settings: RayJobSpec) -> dict[str, str]:
    own = settings.env.keys() | settings.secrets.keys()
    passed_on = {
        name: os.environ[name] for name in _PASSED_ON if name in os.environ and name not in own
    }
    return {"PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **passed_on}


def _owner_labels(owner: Owner | None) -> dict[str, str]:
    """By which what a step started is found. A pod's name may be too long for a label, so the
    annotations have it."""
    if owner is None:
        return {}
    fields = owner.fields()
    told = {key: fields[key] for key in ("owner-uid", "kfp-run") if key in fields}
    return {OWNED_LABEL: "true", **{f"{PREFIX}{key}": value for key, value in told.items()}}


def _owner_annotations(owner: Owner | None) -> dict[str, str]:
    """The owner, to be read back."""
    fields = {} if owner is None else owner.fields()
    return {f"{PREFIX}{key}": value for key, value in fields.items()}


def _owner_references(owner: Owner | None, namespace: str) -> list[dict[str, Any]]:
    """By which Kubernetes itself deletes the RayJob once the step's pod is deleted. A reference
    reaches no other namespace."""
    if owner is None or owner.uid is None or owner.namespace != namespace:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": owner.pod,
            "uid": owner.uid,
            "controller": False,
            "blockOwnerDeletion": False,  # else one must be allowed to set a pod's finalizers
        }
    ]


def _queue(settings: RayJobSpec) -> dict[str, str]:
    return {} if settings.queue is None else {_QUEUE_LABEL: settings.queue}


def _toleration(toleration: Toleration) -> dict[str, Any]:
    fields = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.seconds,
    }
    return {name: value for name, value in fields.items() if value is not None}
