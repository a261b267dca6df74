"""The API of a Kubernetes cluster: RayJobs, pods and their logs; its errors as this project's.

Source: Kubernetes API Reference; KubeRay, "RayJob" (ray.io/v1).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray_jobs.errors import PreflightError, RetryableError, SpecError
from ray_jobs.owners import NAMESPACE_FILE, cluster_id, pod_namespace

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration, CoreV1Api, CustomObjectsApi

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
_TIMEOUT_S = (5, 20)  # to connect, and between two bytes of an answer
_MISSING, _CONFLICT, _NOT_YET = 404, 409, 400  # a container that is waiting has no log yet
_PAGE_SIZE = 200
_MAX_MESSAGE = 300  # characters of the server's own words


class Kube:
    """One cluster and one namespace of it. Threads may share it; nothing is asked before the first
    method is called.

    Every method raises:
        PreflightError: no cluster is named, or it refuses this user or the request.
        RetryableError: it does not answer, or not now.
    """

    def __init__(self, context: str | None = None, namespace: str | None = None):
        """Args:
        context: of the kubeconfig; None: its current one, or the cluster that this pod is in.
        namespace: None: the context's, or this pod's.
        """
        self._context, self._namespace = context, namespace
        self._lock = threading.RLock()
        self._connection: tuple[ApiClient, str] | None = None

    @property
    def namespace(self) -> str:
        return self._namespace or self._connect()[1]

    @property
    def host(self) -> str:
        return str(self._connect()[0].configuration.host)

    @property
    def cluster_id(self) -> str | None:
        """As `owners.cluster_id`, of this cluster."""
        authority = self._connect()[0].configuration.ssl_ca_cert
        return cluster_id(Path(authority)) if authority else None

    # RayJobs

    def rayjob(self, name: str) -> dict[str, Any] | None:
        """The RayJob of this name; None if there is none."""
        with self._answers(f"RayJob {name}", _MISSING):
            return self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=_TIMEOUT_S
            )
        return None

    def rayjobs(self, selector: str) -> list[dict[str, Any]]:
        """Those whose labels the selector takes."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            with self._answers("RayJobs"):
                page = self._custom.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, label_selector=selector,
                    limit=_PAGE_SIZE, _continue=token, _request_timeout=_TIMEOUT_S,
                )  # fmt: skip
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    def create_rayjob(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> bool:
        """Have a RayJob made; False if there is one of this name already.

        Args:
            dry_run: have the server judge it, with its admission plugins, and make none.
        """
        name = manifest["metadata"]["name"]
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        with self._answers(f"RayJob {name}", _CONFLICT):
            self._custom.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, dict(manifest),
                field_validation="Strict", _request_timeout=_TIMEOUT_S, **options,
            )  # fmt: skip
            return True
        return False

    def patch_rayjob(self, name: str, changes: Mapping[str, Any]) -> None:
        """Merge changes into a RayJob (RFC 7386)."""
        with self._answers(f"RayJob {name}"):
            self._custom.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, dict(changes),
                _request_timeout=_TIMEOUT_S,
            )  # fmt: skip

    def delete_rayjob(self, name: str, uid: str | None = None) -> None:
        """Ask for a RayJob's end; what it owns follows it. Nothing happens if it is gone.

        Args:
            uid: of the one that is meant; another of the same name is left alone.
        """
        preconditions = {"preconditions": {"uid": uid}} if uid else {}
        with self._answers(f"RayJob {name}", _MISSING, _CONFLICT):
            self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name,
                body={"propagationPolicy": "Background", **preconditions},
                _request_timeout=_TIMEOUT_S,
            )  # fmt: skip

    # Pods

    def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A pod of any namespace; None if there is none."""
        with self._answers(f"pod {namespace}/{name}", _MISSING):
            answer = self._core.read_namespaced_pod(
                name, namespace, _preload_content=False, _request_timeout=_TIMEOUT_S
            )
            return json.loads(answer.data)
        return None

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Those whose labels the selector takes, the oldest first."""
        with self._answers("pods"):
            answer = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )  # fmt: skip
            pods = json.loads(answer.data).get("items") or []
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def log(self, pod: str, *, follow: bool = False) -> Iterator[str]:
        """What a pod's container has written, line by line; nothing if it has not begun or is
        gone."""
        with self._answers(f"log of pod {pod}", _MISSING, _NOT_YET):
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, follow=follow, _preload_content=False,
                _request_timeout=(_TIMEOUT_S[0], None if follow else _TIMEOUT_S[1]),
            )  # fmt: skip
            with closing(answer):
                rest = b""
                for chunk in answer.stream(decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", errors="replace") for line in lines)
                if rest:
                    yield rest.decode("utf-8", errors="replace")

    # What may be asked

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        """Whether this user may do so in the namespace (SelfSubjectAccessReview)."""
        from kubernetes import client

        attributes = client.V1ResourceAttributes(
            namespace=self.namespace, verb=verb, group=group, resource=resource,
            subresource=subresource,
        )  # fmt: skip
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        with self._answers("access reviews"):
            answer = client.AuthorizationV1Api(
                self._connect()[0]
            ).create_self_subject_access_review(review, _request_timeout=_TIMEOUT_S)
        return bool(answer.status and answer.status.allowed)

    def version(self) -> str:
        """The server's, such as `v1.34.10`."""
        from kubernetes import client

        with self._answers("its version"):
            answer = client.VersionApi(self._connect()[0]).get_code(_request_timeout=_TIMEOUT_S)
        return str(answer.git_version)

    def has_rayjobs(self) -> bool:
        """Whether KubeRay's definition of RayJobs is installed."""
        with self._answers("its APIs", _MISSING):
            answer = self._custom.get_api_resources(GROUP, VERSION, _request_timeout=_TIMEOUT_S)
            return any(resource.name == PLURAL for resource in answer.resources)
        return False

    def has(self, kind: Literal["secret", "claim", "service account"], name: str) -> bool | None:
        """Whether the namespace has it; None if this user may not look."""
        read = {
            "secret": self._core.read_namespaced_secret,
            "claim": self._core.read_namespaced_persistent_volume_claim,
            "service account": self._core.read_namespaced_service_account,
        }[kind]
        resource = {
            "secret": "secrets",
            "claim": "persistentvolumeclaims",
            "service account": "serviceaccounts",
        }[kind]
        if not self.may("get", resource):
            return None
        with self._answers(f"{kind} {name}", _MISSING):
            read(name, self.namespace, _request_timeout=_TIMEOUT_S)
            return True
        return False

    # The connection

    @cached_property
    def _custom(self) -> CustomObjectsApi:
        from kubernetes import client

        return client.CustomObjectsApi(self._connect()[0])

    @cached_property
    def _core(self) -> CoreV1Api:
        from kubernetes import client

        return client.CoreV1Api(self._connect()[0])

    def _connect(self) -> tuple[ApiClient, str]:
        with self._lock:
            if self._connection is None:
                self._connection = _connect(self._context)
            return self._connection

    @contextmanager
    def _answers(self, what: str, *expected: int) -> Iterator[None]:
        """What the client raises within, as errors of this project.

        Args:
            expected: answers that end the block without an error.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if error.status in expected:
                return
            raise self._error(what, error) from None
        except (HTTPError, OSError, json.JSONDecodeError) as error:
            raise RetryableError(
                f"the Kubernetes API at {self.host} does not answer ({type(error).__name__}); look "
                "whether it is up and the kubeconfig's server is its address"
            ) from None

    def _error(self, what: str, error: Any) -> Exception:
        status, words = error.status or 0, _words(error)
        if status == 401:
            return PreflightError(
                f"the Kubernetes API at {self.host} does not know this user; sign in again, or "
                "set KUBECONFIG to a file whose user is valid"
            )
        if status == 403:
            return PreflightError(
                f"the Kubernetes API at {self.host} forbids it ({what}): {words}; have a Role in "
                f"{self.namespace} allow it"
            )
        if status == 429 or status >= 500 or status == 0:
            return RetryableError(
                f"the Kubernetes API at {self.host} cannot do it now ({what}, {status}): {words}"
            )
        return PreflightError(f"the Kubernetes API at {self.host} refuses {what}: {words}")


def _connect(context: str | None) -> tuple[ApiClient, str]:
    """The client, and the namespace that it is at work in.

    Raises:
        PreflightError: no cluster is named.
        SpecError: the kubeconfig has no such context.
    """
    from kubernetes import client, config
    from kubernetes.config import ConfigException

    settings: Configuration = client.Configuration()
    settings.retries = False  # whoever asks knows how patient to be
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    is_in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and NAMESPACE_FILE.exists()
    try:
        if os.environ.get("KUBECONFIG") or context or not is_in_cluster:
            config.load_kube_config(path, context=context, client_configuration=settings)
            _, current = config.list_kube_config_contexts(path)
            contexts = {entry["name"]: entry for entry in config.list_kube_config_contexts(path)[0]}
            chosen = contexts[context] if context else current
            namespace = (chosen.get("context") or {}).get("namespace") or "default"
        else:
            config.load_incluster_config(client_configuration=settings)
            namespace = pod_namespace() or "default"
    except ConfigException as error:
        words = " ".join(str(error).split())
        if context is not None and Path(path).exists():
            raise SpecError(f"rayjob.context={context}: {path}: {words}") from None
        raise PreflightError(
            f"no Kubernetes cluster is named ({words}); set KUBECONFIG to a kubeconfig, or start "
            "this in a pod whose service account's token is mounted"
        ) from None
    return client.ApiClient(settings), namespace


def _words(error: Any) -> str:
    """The server's message, on one line."""
    try:
        message = json.loads(error.body or "").get("message")
    except (ValueError, AttributeError):
        message = None
    return " ".join(str(message or error.reason or "").split())[:_MAX_MESSAGE]
