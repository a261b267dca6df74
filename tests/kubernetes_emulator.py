"""The part of Kubernetes that the `rayjob` target and the reaper call, on loopback: an API server
that keeps RayJobs and pods, and an operator that carries a RayJob's entrypoint out as a process.

What it is for: tests without a cluster. tests/cluster has a real API server.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import yaml

NAMESPACE = "jobs"
_NAMED = re.compile(r"/(?:api/v1|apis/[\w.]+/v1)/namespaces/([^/]+)/(\w+)(?:/([^/]+))?(/log)?")
_NOTICE_S = 5.0  # that a deleted pod's processes get
_NOT_IN_A_PROCESS = ("HOME", "USER")  # of a pod: they name folders of its image


class Cluster(ThreadingHTTPServer):
    """The API server's state. `objects` may be changed by a test; `lock` guards it."""

    daemon_threads = True

    def __init__(self, folder: Path, *, runs: bool):
        """Args:
        runs: RayJobs are carried out; else they stay as a test sets their status.
        """
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.runs = folder, runs
        self.token = secrets.token_hex(16)
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}  # resource, namespace, name
        self.denied: set[tuple[str, str]] = set()  # verb, resource
        self.code = 200  # of every answer, if it is an error
        self.requests: list[str] = []
        self.processes: dict[str, psutil.Popen] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def kubeconfig(self) -> Path:
        path = self.folder / "kubeconfig"
        context = {"cluster": "c", "user": "u", "namespace": NAMESPACE}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "here", "context": context}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    def put(self, resource: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """An object of the namespace, as the server keeps it."""
        metadata = {
            "namespace": NAMESPACE, "name": name, "uid": secrets.token_hex(8),
            "creationTimestamp": _now(), **body.get("metadata", {}),
        }  # fmt: skip
        with self.lock:
            self.objects[resource, NAMESPACE, name] = {**body, "metadata": metadata}
            return self.objects[resource, NAMESPACE, name]

    def put_pod(self, name: str, phase: str = "Running", **labels: str) -> dict[str, Any]:
        body = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main"}]}}
        return self.put("pods", name, {**body, "status": {"phase": phase}})

    def get(self, resource: str, name: str) -> dict[str, Any] | None:
        with self.lock:
            return self.objects.get((resource, NAMESPACE, name))

    def names(self, resource: str) -> list[str]:
        with self.lock:
            return sorted(name for kind, _, name in self.objects if kind == resource)

    def delete_pod(self, name: str) -> None:
        """A pod's end, and that of what it owns, as the garbage collector sees to it."""
        with self.lock:
            pod = self.objects.pop(("pods", NAMESPACE, name))
            owned = [
                each
                for (kind, _, each), found in self.objects.items()
                if kind == "rayjobs"
                and any(
                    ref["uid"] == pod["metadata"]["uid"]
                    for ref in found["metadata"].get("ownerReferences", [])
                )
            ]
        for each in owned:
            self.delete_rayjob(each)

    def delete_rayjob(self, name: str) -> None:
        with self.lock:
            found = self.objects[("rayjobs", NAMESPACE, name)]
            found["metadata"]["deletionTimestamp"] = _now()
        threading.Thread(target=self._take_away, args=(name,), daemon=True).start()

    def _take_away(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            end(process)
        with self.lock:
            for key, found in [*self.objects.items()]:
                labels = found["metadata"].get("labels") or {}
                if key[0] == "pods" and labels.get("emberline/rayjob") == name:
                    del self.objects[key]
            self.objects.pop(("rayjobs", NAMESPACE, name), None)

    def carry_out(self, name: str) -> None:
        """What KubeRay's operator does about a RayJob, in a thread."""
        threading.Thread(target=self._carry_out, args=(name,), daemon=True).start()

    def _carry_out(self, name: str) -> None:
        found = self.get("rayjobs", name)
        if found is None:
            return
        spec, failed = found["spec"], 0
        while True:
            log = self.folder / f"{name}-{failed}.log"
            with self.lock:
                if found["metadata"].get("deletionTimestamp"):
                    return
                self._make_pods(name, spec, failed, log)
                self.processes[name] = process = _start(spec, log)
                found["status"] = _status("RUNNING", "Running", failed, startTime=_now())
            code = process.wait()
            with self.lock:
                if found["metadata"].get("deletionTimestamp"):
                    return
                began = found["status"]["startTime"]
                times = {"startTime": began, "endTime": _now()}
                if code == 0:
                    found["status"] = _status("SUCCEEDED", "Complete", failed, **times)
                    return
                words = log.read_text(errors="replace")[-20_000:]
                message = (
                    "Job entrypoint command "
                    f"failed with exit code {code}, last available logs (truncated to 20,000 "
                    f"chars):\n{words}"
                )
                failed += 1
                if failed > spec["backoffLimit"]:
                    found["status"] = _status(
                        "FAILED", "Failed", failed, reason="AppFailed", message=message, **times
                    )
                    return
                found["status"] = _status("", "Retrying", failed, startTime=began)

    def _make_pods(self, name: str, spec: dict[str, Any], failed: int, log: Path) -> None:
        templates = {
            "head": spec["rayClusterSpec"]["headGroupSpec"]["template"],
            "submitter": spec["submitterPodTemplate"],
        }
        for role, template in templates.items():
            pod = self.put_pod(f"{name}-{role}-{failed}", **template["metadata"]["labels"])
            pod["log"] = str(log)


def _start(spec: dict[str, Any], log: Path) -> psutil.Popen:
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "python", words
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    given = {each["name"]: each["value"] for each in head["env"] if "value" in each}
    environment = {**os.environ, **{k: v for k, v in given.items() if k not in _NOT_IN_A_PROCESS}}
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        return psutil.Popen(
            [sys.executable, *words[1:]], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment, start_new_session=True,
        )  # fmt: skip


def end(process: psutil.Popen) -> None:
    """As a pod ends: notice, and then no mercy."""
    family = [process, *_children(process)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in family:
            try:
                one.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=_NOTICE_S)


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _status(job: str, deployment: str, failed: int, **fields: str) -> dict[str, Any]:
    return {"jobStatus": job, "jobDeploymentStatus": deployment, "failed": failed, **fields}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Answers(BaseHTTPRequestHandler):
    server: Cluster
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url, query = self._begin()
        if url is None:
            return
        if url == "/version/":
            self._send({"major": "1", "minor": "34", "gitVersion": "v1.34.10", "gitCommit": "",
                        "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
                        "platform": ""})  # fmt: skip
            return
        if url == "/apis/ray.io/v1":
            names = [] if ("get", "crd") in self.server.denied else ["rayjobs", "rayclusters"]
            resources = [
                {"name": name, "singularName": "", "namespaced": True, "kind": "X", "verbs": []}
                for name in names
            ]
            self._send({"groupVersion": "ray.io/v1", "resources": resources})
            return
        resource, namespace, name, is_log = self._named(url)
        if is_log:
            self._send_log(name, follow=query.get("follow") == "true")
        elif name:
            with self.server.lock:
                found = self.server.objects.get((resource, namespace, name))
                self._send(found if found is not None else None, 200 if found is not None else 404)
        else:
            self._list(resource, namespace, query)

    def do_POST(self) -> None:
        url, query = self._begin()
        if url is None:
            return
        body = self._body()
        if url.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            denied = (asked["verb"], asked["resource"]) in self.server.denied
            self._send({"spec": body["spec"], "status": {"allowed": not denied}}, 201)
            return
        resource, namespace, _, _ = self._named(url)
        name = body["metadata"]["name"]
        with self.server.lock:
            if (resource, namespace, name) in self.server.objects:
                self._send(None, 409)
            elif query.get("dryRun") == "All":
                self._send(body, 201)
            else:
                self._send(self.server.put(resource, name, body), 201)
                if self.server.runs:
                    self.server.carry_out(name)

    def do_PATCH(self) -> None:
        url, _ = self._begin()
        if url is None:
            return
        resource, namespace, name, _ = self._named(url)
        changes = self._body()
        with self.server.lock:
            found = self.server.objects.get((resource, namespace, name))
            if found is None:
                self._send(None, 404)
                return
            _merge(found, changes)
            self._send(found)

    def do_DELETE(self) -> None:
        url, _ = self._begin()
        if url is None:
            return
        resource, namespace, name, _ = self._named(url)
        uid = ((self._body() or {}).get("preconditions") or {}).get("uid")
        with self.server.lock:
            found = self.server.objects.get((resource, namespace, name))
            if found is None or (uid and uid != found["metadata"]["uid"]):
                self._send(None, 404 if found is None else 409)
                return
            self._send(found)
            self.server.delete_rayjob(name)

    def _begin(self) -> tuple[str | None, dict[str, str]]:
        self.server.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        code = self.server.code
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            code = 401
        if code != 200:
            self._send(None, code)
            return None, query
        return url.path, query

    def _named(self, path: str) -> tuple[str, str, str, bool]:
        match = _NAMED.fullmatch(path)
        assert match is not None, path
        return match[2], match[1], match[3] or "", bool(match[4])

    def _list(self, resource: str, namespace: str, query: dict[str, str]) -> None:
        with self.server.lock:
            found = [
                each
                for (kind, where, _), each in sorted(self.server.objects.items())
                if (kind, where) == (resource, namespace)
                and _selects(query.get("labelSelector", ""), each)
            ]
            start = int(query.get("continue") or 0)
            most = min(int(query.get("limit") or 500), 2)  # pages are small, for more of them
            page = found[start : start + most] if "limit" in query else found
            more = str(start + most) if "limit" in query and start + most < len(found) else ""
            self._send({"metadata": {"continue": more}, "items": page})

    def _send_log(self, name: str, *, follow: bool) -> None:
        pod = self.server.get("pods", name)
        if pod is None or "log" not in pod:
            self._send(None, 404 if pod is None else 400)
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with Path(pod["log"]).open("rb") as file:
            while True:
                is_over = not follow or self._is_over(pod)
                chunk = file.read()
                self.wfile.write(chunk)
                self.wfile.flush()
                if is_over and not chunk:
                    return
                time.sleep(0.05)

    def _is_over(self, pod: dict[str, Any]) -> bool:
        name = pod["metadata"]["name"]
        process = self.server.processes.get(pod["metadata"]["labels"]["emberline/rayjob"])
        return self.server.get("pods", name) is None or process is None or not process.is_running()

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length)) if length else None

    def _send(self, content: object, code: int = 200) -> None:
        if content is None:
            content = {"kind": "Status", "code": code, "message": f"answer {code}"}
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""


def _selects(selector: str, found: dict[str, Any]) -> bool:
    labels = found["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    """RFC 7386."""
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = {k: v for k, v in value.items() if v is not None} if isinstance(
                value, dict
            ) else value  # fmt: skip


@contextmanager
def cluster(folder: Path, *, runs: bool = False) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts; its processes end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Cluster(folder, runs=runs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for process in server.processes.values():
            end(process)
