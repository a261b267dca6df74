"""What can be known before a RayJob is made: nothing is created for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray_jobs.checks import Check, Checklist, check_storage
from ray_jobs.errors import PreflightError, RetryableError
from ray_jobs.owners import Owner
from ray_jobs.run import Run
from ray_jobs.storage import Storage
from ray_jobs.targets.kube import GROUP, Kube
from ray_jobs.targets.names import rayjob_name
from ray_jobs.targets.rayjob_manifest import NO_IMAGE, rayjob_of
from ray_jobs.targets.rayjob_spec import RayJobSpec

_NEEDED = (
    ("create", "rayjobs", GROUP, ""),
    ("get", "rayjobs", GROUP, ""),
    ("list", "rayjobs", GROUP, ""),
    ("delete", "rayjobs", GROUP, ""),
    ("list", "pods", "", ""),
    ("get", "pods", "", "log"),
)
_NEEDED_OF_STEPS = (("patch", "rayjobs", GROUP, ""),)


def examine(kube: Kube, spec: Any, settings: RayJobSpec, owner: Owner | None) -> Checklist:
    """Every check of a job description; what is wrong is a failed one with its fix."""
    checklist = Checklist()
    checklist.make("image", lambda: _look_at_image(settings))
    checklist.make("Kubernetes", lambda: _look_at_server(kube))
    there = ["Kubernetes"]
    checklist.make("KubeRay", lambda: _look_at_kuberay(kube), needs=there)
    checklist.make("permissions", lambda: _look_at_permissions(kube, owner), needs=there)
    if checklist.has_passed("Kubernetes"):
        for check in _look_at_named(kube, settings):
            checklist.add(check)
    checklist.add(check_storage(spec.storage))
    checklist.make("shared storage", lambda: _look_at_storage(spec.storage, settings))
    judged = ["image", "KubeRay", "permissions"]
    checklist.make("RayJob", lambda: _look_at_manifest(kube, spec, settings), needs=judged)
    return checklist


def _look_at_image(settings: RayJobSpec) -> str:
    if settings.image is None:
        raise PreflightError(NO_IMAGE)
    return settings.image


def _look_at_server(kube: Kube) -> str:
    try:
        return f"{kube.host} answers: {kube.version()}"
    except RetryableError as error:
        raise PreflightError(str(error)) from None


def _look_at_kuberay(kube: Kube) -> str:
    if not kube.has_rayjobs():
        raise PreflightError(
            "the cluster knows no RayJobs (ray.io/v1); install KubeRay's operator, 1.6 or newer"
        )
    return "RayJobs are known"


def _look_at_permissions(kube: Kube, owner: Owner | None) -> str:
    denied = [
        f"{verb} {resource}{f'/{part}' if part else ''}"
        for verb, resource, group, part in (*_NEEDED, *(_NEEDED_OF_STEPS if owner else ()))
        if not kube.may(verb, resource, group, part)
    ]
    if denied:
        raise PreflightError(
            f"this user may not {', '.join(denied)} in {kube.namespace}; have a Role there allow "
            "it, or set rayjob.namespace to another"
        )
    return f"RayJobs and logs in {kube.namespace}"


def _look_at_named(kube: Kube, settings: RayJobSpec) -> Iterator[Check]:
    """What the description names and the namespace must have."""
    secrets = {source.secret for source in settings.secrets.values()}
    account = settings.service_account
    named: Mapping[Any, list[str]] = {
        "secret": sorted(secrets | {*settings.image_pull_secrets}),
        "claim": sorted(settings.volumes),
        "service account": [account] if account else [],
    }
    for kind, names in named.items():
        for name in names:
            there = kube.has(kind, name)
            found = {
                True: "is there",
                False: f"{kube.namespace} has none of this name",
                None: "not known: this user may not look",
            }[there]
            yield Check(f"{kind} {name}", there, found, "create it, or name another")


def _look_at_storage(uri: str, settings: RayJobSpec) -> str:
    storage = Storage(uri)
    if not storage.is_local:
        return f"the pods need credentials for {storage.uri}"
    folder = f"{storage.local()}/"
    if not any(folder.startswith(f"{path}/") for path in settings.volumes.values()):
        raise PreflightError(
            f"{storage.uri} is in no volume of the pods; give --storage s3://BUCKET/PREFIX, or "
            "mount the same volume here and there: rayjob.volumes.CLAIM=/FOLDER"
        )
    return f"{storage.uri} must be the same folder on this machine and in the pods"


def _look_at_manifest(kube: Kube, spec: Any, settings: RayJobSpec) -> str:
    """What the server, with its admission plugins, says of such a RayJob."""
    name = rayjob_name(spec.workload, "check", "dry-run")
    job = rayjob_of(Run(spec, "check"), name, settings)
    kube.create_rayjob(job.manifest(kube.namespace), dry_run=True)
    return "the server takes it"
