"""The API server by kinds and plain objects, built-in ones and custom ones alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
_PATCH = "application/merge-patch+json"


class Refused(Exception):
    """The API server said no: `status` is the HTTP code, the message its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Kind:
    """Where the objects of a kind are."""

    name: str
    version: str  # /api/v1, /apis/apps/v1
    plural: str
    is_namespaced: bool

    def path(self, namespace: str) -> str:
        """No namespace of a kind that has them: those of all."""
        place = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        return f"{self.version}{place}/{self.plural}"


@dataclass(frozen=True)
class Api:
    """One user's view. Every method raises Refused."""

    client: Any  # a kubernetes.client.ApiClient
    _kinds: dict[str, Kind] = field(default_factory=dict)

    def of(self, client: Any) -> Api:
        """Another user's."""
        return Api(client, self._kinds)

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        from kubernetes.client import ApiException

        kind = _PATCH if method == "PATCH" else "application/json"
        try:
            answer = self.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=30,
            )
        except ApiException as error:
            raise Refused(error.status, _message(error.body)) from error
        return json.loads(answer.data)

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        return self.call("GET", f"{self._path(kind, namespace)}/{name}")

    def list(self, kind: str, namespace: str = "", **labels: str) -> list[Object]:
        """Those with all of the labels: `list("Pod", ns, **{"ray.io/cluster": "c"})`."""
        return self.call("GET", self._path(kind, namespace), **_selector(labels))["items"]

    def everywhere(self, kind: str) -> list[Object]:
        """Those of all namespaces, from the server's cache."""
        return self.call("GET", self._path(kind, ""), resourceVersion="0")["items"]

    def create(self, item: Mapping[str, Any], namespace: str = "", **query: str) -> Object:
        place = item["metadata"].get("namespace", namespace)
        return self.call("POST", self._path(item["kind"], place), dict(item), **query)

    def patch(
        self, kind: str, name: str, change: Mapping[str, Any], namespace: str = "", part: str = ""
    ) -> Object:
        """Merge a change into an object, or into its part `status` or `scale`."""
        path = f"{self._path(kind, namespace)}/{name}" + (f"/{part}" if part else "")
        return self.call("PATCH", path, dict(change))

    def delete(self, kind: str, name: str, namespace: str = "", **query: str) -> None:
        self.call("DELETE", f"{self._path(kind, namespace)}/{name}", **query)

    def is_there(self, kind: str, name: str, namespace: str = "") -> bool:
        try:
            self.get(kind, name, namespace)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def token(self, account: str, namespace: str) -> str:
        """A new one of a ServiceAccount, such as a pod of the account is given."""
        path = f"{self._path('ServiceAccount', namespace)}/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return self.call("POST", path, asked)["status"]["token"]

    def labelled(self, namespace: str, **labels: str) -> set[tuple[str, str]]:
        """Kind and name of all objects of a namespace with the labels, of whatever kind."""
        selector, found = _selector(labels), set()
        for kind in self._discovered():
            if kind.is_namespaced:
                items = self.call("GET", kind.path(namespace), **selector)["items"]
                found |= {(kind.name, item["metadata"]["name"]) for item in items}
        return found

    def _path(self, kind: str, namespace: str) -> str:
        if kind not in self._kinds:
            for each in self._discovered():
                self._kinds.setdefault(each.name, each)  # Event: the core's
        return self._kinds[kind].path(namespace)

    def _discovered(self) -> Iterator[Kind]:
        groups = self.call("GET", "/apis")["groups"]
        versions = [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups]
        for version in ("/api/v1", *versions):
            for each in self.call("GET", version)["resources"]:
                if "/" not in each["name"] and "list" in each["verbs"]:
                    yield Kind(each["kind"], version, each["name"], each["namespaced"])


def until(holds: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """The first true value of `holds`. Raises AssertionError that names `what` never came."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s: {what}"
        time.sleep(0.2)
    return found


def _selector(labels: Mapping[str, str]) -> dict[str, str]:
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return {"labelSelector": selector} if selector else {}


def _message(body: bytes | str | None) -> str:
    try:
        return json.loads(body or "{}").get("message", "")
    except ValueError:
        return str(body)
