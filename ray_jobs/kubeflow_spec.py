"""The section `kubeflow` of a job description: the steps of its pipeline on a cluster."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_jobs.section import Section

# Of every pipeline; a step is named after its component.
STEPS = (
    "prepare", "scan", "read_logs", "preflight", "sweep", "train", "train_member", "ensemble",
    "evaluate", "evaluate_classes", "evaluate_gcode", "register", "promote", "gate", "deploy",
    "drift", "retrain",
)  # fmt: skip
DEFAULT = "default"

# Kubernetes, "Object Names and IDs", "Resource Quantities", "Labels and Selectors".
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_CPU = re.compile(r"[0-9]+(\.[0-9]+)?m?")
_MEMORY = re.compile(r"[0-9]+(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?")
_LABEL = re.compile(r"([a-z0-9A-Z.-]+/)?[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?")
_LABEL_VALUE = re.compile(r"([a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)
_URL = re.compile(r"https?://[^/\s@]+(/\S*)?")
MAX_LABEL = 63


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels, if Kubernetes takes them.

    Raises:
        ValueError: it does not.
    """
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or len(key.rpartition("/")[2]) > MAX_LABEL:
            raise ValueError(f"{key!r} is not the name of a label, such as example.com/pool")
        if not _LABEL_VALUE.fullmatch(value) or len(value) > MAX_LABEL:
            raise ValueError(
                f"{key}: {value!r} is not the value of a label: at most {MAX_LABEL} letters, "
                "digits, '-', '_' and '.'"
            )
    return labels


class SecretKey(Section):
    """A key of a Secret that is in the cluster already."""

    secret: str
    key: str

    @field_validator("secret")
    @classmethod
    def _named(cls, name: str) -> str:
        return _object_name(name, "a Secret")


class Toleration(Section):
    """A taint that a step's pod bears. See Kubernetes, "Taints and Tolerations"."""

    key: str | None = None  # None with Exists: every taint
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None  # None: each
    seconds: Annotated[int, Field(ge=0)] | None = None  # with NoExecute; None: for ever

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a toleration names the key of the taint, or has operator: Exists")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("with operator: Exists a toleration has no value")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("seconds go with effect: NoExecute")
        return self


class StepSpec(Section):
    """What one step gets. What is absent is as in `steps.default`."""

    cpu: str | None = None  # cores: requested, and the limit
    memory: str | None = None  # such as 4Gi: requested, and the limit
    # Of `memory`, at /dev/shm: Ray and workers that load data share it; a pod has 64 MiB else.
    shared_memory: str | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    accelerator: str | None = None  # the resource that `gpus` counts; default: nvidia.com/gpu
    timeout_s: Annotated[int, Field(ge=1)] | None = None  # of one attempt
    node_selector: dict[str, str] = {}  # with those of the default
    tolerations: list[Toleration] = []  # with those of the default

    @field_validator("cpu")
    @classmethod
    def _cores(cls, text: str | None) -> str | None:
        if text is not None and not _CPU.fullmatch(text):
            raise ValueError(f"{text!r} is not a number of cores, such as 2, 0.5 or 500m")
        return text

    @field_validator("memory", "shared_memory")
    @classmethod
    def _bytes(cls, text: str | None) -> str | None:
        if text is not None and not _MEMORY.fullmatch(text):
            raise ValueError(f"{text!r} is not an amount of memory, such as 512Mi or 4Gi")
        return text

    @field_validator("accelerator")
    @classmethod
    def _resource(cls, text: str | None) -> str | None:
        if text is not None and not (_LABEL.fullmatch(text) and "/" in text):
            raise ValueError(f"{text!r} is not a resource of a node, such as nvidia.com/gpu")
        return text

    _node_labels = field_validator("node_selector")(check_labels)

    def over(self, default: StepSpec) -> StepSpec:
        """This one, with the default's where it says nothing."""
        own = self.model_dump(exclude_none=True, exclude={"node_selector", "tolerations"})
        return default.model_copy(
            update={
                **own,
                "node_selector": {**default.node_selector, **self.node_selector},
                "tolerations": [*default.tolerations, *self.tolerations],
            }
        )


class RetrySpec(Section):
    """How often a step is tried again that a retry may help: one whose pod was lost, or that ended
    with exit code 5. A retry of any other ends at once, with the same error."""

    num: Annotated[int, Field(ge=0, le=20)] = 2
    wait_s: Annotated[int, Field(ge=0)] = 30  # before the first
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0  # of the wait, each time
    # Of all attempts together. Argo counts it from the first one's start, and ends what runs then.
    within_s: Annotated[int, Field(ge=1)] = 30 * 86_400


class KubeflowSpec(Section):
    """Where Kubeflow Pipelines is, and what the steps of a pipeline get there.

    The token of an API that asks for one is no part of it: KFP_TOKEN gives it, or `token_path`
    names its file, or KF_PIPELINES_SA_TOKEN_PATH does.
    """

    endpoint: str | None = None  # of KFP's API: http://HOST:8888; default: KF_PIPELINES_ENDPOINT
    ui: str | None = None  # that links lead to; default: the endpoint
    token_path: str | None = None  # of a file on the machine that submits
    namespace: str | None = None  # of the runs, where KFP has several users
    experiment: str | None = None  # of KFP; default: the workload's name
    train_on: Literal["step", "ray", "rayjob"] = "step"  # its pod, ray.address, or a RayJob
    image: str | None = None  # of the steps; default: EMBERLINE_IMAGE
    service_account: str | None = None  # of the steps; default: KFP's own
    image_pull_secrets: list[str] = []
    env: dict[str, str] = {}  # variables of every step; no secrets
    secrets: dict[str, SecretKey] = {}  # variable -> where its value lies
    volumes: dict[str, str] = {}  # claim -> where it is mounted in every step
    labels: dict[str, str] = {}  # of every step's pod
    steps: dict[str, StepSpec] = {}  # step, or default -> what it gets
    retries: RetrySpec = RetrySpec()
    caching: bool = False  # KFP's, of steps whose inputs name all that they read

    @field_validator("endpoint", "ui")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None and not _URL.fullmatch(url):
            raise ValueError(f"{url!r} is not an address; write it as http://HOST:8888")
        return url.rstrip("/") if url else url

    @field_validator("namespace", "service_account")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        return name if name is None else _object_name(name, "an object of Kubernetes")

    @field_validator("image_pull_secrets")
    @classmethod
    def _secret_names(cls, names: list[str]) -> list[str]:
        return [_object_name(name, "a Secret") for name in names]

    @field_validator("env")
    @classmethod
    def _public(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            _variable(name)
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} sounds like a secret, and a pipeline's text is public in its cluster; "
                    f"name a Secret instead: kubeflow.secrets.{name}={{secret: NAME, key: KEY}}"
                )
        return env

    @field_validator("secrets")
    @classmethod
    def _variables(cls, secrets: dict[str, SecretKey]) -> dict[str, SecretKey]:
        for name in secrets:
            _variable(name)
        return secrets

    @field_validator("volumes")
    @classmethod
    def _mounted(cls, volumes: dict[str, str]) -> dict[str, str]:
        for claim, path in volumes.items():
            _object_name(claim, "a PersistentVolumeClaim")
            if not path.startswith("/") or ".." in path.split("/") or path.rstrip("/") == "":
                raise ValueError(f"{claim}: {path!r} is not a folder's full path, such as /data")
        if len(set(volumes.values())) < len(volumes):
            raise ValueError("two claims are mounted at the same path")
        return volumes

    _pod_labels = field_validator("labels")(check_labels)

    @field_validator("steps")
    @classmethod
    def _known(cls, steps: dict[str, StepSpec]) -> dict[str, StepSpec]:
        for name in steps:
            if name not in (DEFAULT, *STEPS):
                raise ValueError(f"{name!r} is not a step; they are {', '.join((DEFAULT, *STEPS))}")
        return steps

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        for name in self.env.keys() & self.secrets.keys():
            raise ValueError(f"{name} is set by env and by secrets; keep one")
        return self

    def step(self, name: str) -> StepSpec:
        """What the step gets, with the defaults."""
        return self.steps.get(name, StepSpec()).over(self.steps.get(DEFAULT, StepSpec()))


def _object_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise ValueError(f"{name!r} is not the name of {what}: small letters, digits, '-' and '.'")
    return name


def _variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a variable")
