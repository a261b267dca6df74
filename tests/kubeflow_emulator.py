"""A server on loopback that speaks KFP's v2beta1 REST: pipelines and their versions, experiments,
runs and recurring runs, kept in memory, with faults on demand.

Shapes are those of KFP's own client (`kfp_server_api`): a request with a field that it does not
have is refused, and every answer is written by it. What an uploaded pipeline says is read by KFP's
protocol buffers.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as models
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

_PREFIX = "/apis/v2beta1"
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


class Refused(Exception):
    """An answer that is an error, as grpc-gateway writes it."""

    def __init__(self, status: int, code: int, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    method: str
    path: str  # a pattern
    kind: str  # unavailable, hangs, lost (carried out, but never answered), page
    times: int = 1


@dataclass
class KubeflowEmulator:
    """One server. `script` says which states a new run goes through, one a look."""

    token: str | None = None
    script: list[str] = field(default_factory=lambda: ["PENDING", "RUNNING", "SUCCEEDED"])
    steps: dict[str, str] = field(default_factory=dict)  # at a run's end: step -> state, or states
    step_error: str | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pipelines: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.uploaded: dict[str, str] = {}  # version -> its YAML
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.schedules: dict[str, Any] = {}
        self._scripts: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._client = models.ApiClient()

    def __enter__(self) -> Self:
        emulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                emulator._answer(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, method: str, path: str, kind: str, times: int = 1) -> None:
        self.faults.append(Fault(method, path, kind, times))

    def count(self, method: str, path: str) -> int:
        return sum(one == method and bool(re.search(path, at)) for one, at in self.requests)

    # One request

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, url.path))
        fault = self._fault(handler.command, url.path)
        if fault == "hangs":
            time.sleep(3)
        try:
            if fault == "unavailable":
                raise Refused(503, 14, "no healthy upstream")
            if fault == "page":
                self._send(handler, 200, b"<html>Sign in</html>", "text/html")
                return
            if self.token and handler.headers.get("authorization") != f"Bearer {self.token}":
                raise Refused(401, 16, "Request header error: there is no user identity header")
            with self._lock:
                answer = self._route(handler, url.path, parse_qs(url.query), body)
            status, content = 200, self._client.sanitize_for_serialization(answer)
        except Refused as error:
            status = error.status
            content = {"code": error.code, "error": error.message, "message": error.message}
        if fault == "lost":
            handler.close_connection = True
            handler.connection.close()
            return
        self._send(handler, status, json.dumps(content or {}).encode(), "application/json")

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, content: bytes, kind: str
    ) -> None:
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:  # whoever asked has gone
            handler.close_connection = True

    def _fault(self, method: str, path: str) -> str | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.kind
        return None

    def _route(
        self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]], body: bytes
    ) -> Any:
        given = {key: values[0] for key, values in query.items()}
        if handler.command == "POST" and path == f"{_PREFIX}/pipelines/upload_version":
            return self._upload(handler.headers["Content-Type"], given, body)
        for method, pattern, call in self._routes():
            found = re.fullmatch(_PREFIX + pattern, path)
            if found and method == handler.command:
                sent = json.loads(body) if body else None
                return call(*found.groups(), given=given, sent=sent)
        raise Refused(404, 5, f"Not Found: {handler.command} {path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        one = r"/([0-9a-f-]{36})"
        return [
            ("GET", "/pipelines", self._list_of(self.pipelines, "pipelines")),
            ("POST", "/pipelines", self._create_pipeline),
            ("GET", f"/pipelines{one}/versions", self._list_versions),
            ("GET", "/experiments", self._list_of(self.experiments, "experiments")),
            ("POST", "/experiments", self._create_experiment),
            ("GET", "/runs", self._list_runs),
            ("POST", "/runs", self._create_run),
            ("GET", f"/runs{one}", self._get_run),
            ("DELETE", f"/runs{one}", self._delete(self.runs, "Run")),
            ("POST", f"/runs{one}:terminate", self._terminate),
            ("POST", f"/runs{one}:retry", self._retry),
            ("GET", "/recurringruns", self._list_of(self.schedules, "recurring_runs")),
            ("POST", "/recurringruns", self._create_schedule),
            ("DELETE", f"/recurringruns{one}", self._delete(self.schedules, "RecurringRun")),
            ("POST", f"/recurringruns{one}:enable", self._switch("ENABLE")),
            ("POST", f"/recurringruns{one}:disable", self._switch("DISABLE")),
        ]

    # Lists

    def _list_of(self, items: dict[str, Any], name: str) -> Callable[..., Any]:
        def listed(given: dict[str, str], sent: None) -> Any:
            return self._page(list(items.values()), name, given)

        return listed

    def _list_versions(self, pipeline_id: str, given: dict[str, str], sent: None) -> Any:
        found = [one for one in self.versions.values() if one.pipeline_id == pipeline_id]
        return self._page(found, "pipeline_versions", given)

    def _list_runs(self, given: dict[str, str], sent: None) -> Any:
        experiment = given.get("experiment_id")
        found = [run for run in self.runs.values() if experiment in (None, run.experiment_id)]
        return self._page(found, "runs", given)

    def _page(self, items: list[Any], name: str, given: dict[str, str]) -> Any:
        for predicate in json.loads(given.get("filter", "{}")).get("predicates", []):
            if predicate["operation"] != "EQUALS" or predicate["key"] != "display_name":
                raise Refused(400, 3, f"Invalid input error: filter {predicate}")
            items = [one for one in items if one.display_name == predicate["stringValue"]]
        items = sorted(items, key=lambda one: one.created_at)
        start, size = int(given.get("page_token") or 0), int(given.get("page_size") or 20)
        token = str(start + size) if start + size < len(items) else ""
        page = {name: items[start : start + size] or None, "next_page_token": token}
        kind = name.title().replace("_", "")
        return getattr(models, f"V2beta1List{kind}Response")(**page)

    # Pipelines

    def _create_pipeline(self, given: dict[str, str], sent: Any) -> Any:
        made = parsed(sent, models.V2beta1Pipeline)
        if any(one.name == made.name for one in self.pipelines.values()):
            raise Refused(409, 6, f"Already exist error: The name {made.name} already exists")
        made.pipeline_id, made.created_at = new_id(), now()
        self.pipelines[made.pipeline_id] = made
        return made

    def _upload(self, content_type: str, given: dict[str, str], body: bytes) -> Any:
        if given.get("pipelineid") not in self.pipelines:
            raise Refused(400, 3, "Failed to create a pipeline version")
        message = email.message_from_bytes(
            f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP
        )
        (part,) = [one for one in message.iter_parts() if one.get_filename()]
        text = part.get_payload(decode=True).decode()
        try:
            first, *_ = yaml.safe_load_all(text)
            json_format.ParseDict(first, pipeline_spec_pb2.PipelineSpec())
        except (yaml.YAMLError, json_format.ParseError):
            raise Refused(400, 3, "Failed to create a pipeline version") from None
        name = given["name"]
        same = [one for one in self.versions.values() if one.pipeline_id == given["pipelineid"]]
        if any(one.name == name for one in same):
            raise Refused(409, 6, "Failed to create a pipeline version")
        made = models.V2beta1PipelineVersion(
            pipeline_id=given["pipelineid"],
            pipeline_version_id=new_id(),
            name=name,
            display_name=name,
            description=given.get("description"),
            created_at=now(),
            pipeline_spec=first,
        )
        self.versions[made.pipeline_version_id] = made
        self.uploaded[made.pipeline_version_id] = text
        return made

    def _create_experiment(self, given: dict[str, str], sent: Any) -> Any:
        made = parsed(sent, models.V2beta1Experiment)
        for one in self.experiments.values():
            if (one.display_name, one.namespace) == (made.display_name, made.namespace):
                raise Refused(409, 6, f"Already exist error: {made.display_name} exists")
        made.experiment_id, made.created_at = new_id(), now()
        self.experiments[made.experiment_id] = made
        return made

    # Runs

    def _create_run(self, given: dict[str, str], sent: Any) -> Any:
        made = parsed(sent, models.V2beta1Run)
        self._check_source(made)
        made.run_id, made.created_at, made.state = new_id(), now(), "PENDING"
        self.runs[made.run_id] = made
        self._scripts[made.run_id] = list(self.script)
        return made

    def _check_source(self, made: Any) -> None:
        if made.experiment_id not in self.experiments:
            raise Refused(404, 5, f"Experiment {made.experiment_id} not found")
        reference = made.pipeline_version_reference
        version = self.versions.get(reference.pipeline_version_id) if reference else None
        if version is None:
            raise Refused(400, 3, "Invalid input error: the pipeline version is unknown")
        wanted = version.pipeline_spec["root"]["inputDefinitions"]["parameters"]
        parameters = (made.runtime_config.parameters if made.runtime_config else None) or {}
        for name, definition in wanted.items():
            if name not in parameters and not definition.get("isOptional"):
                why = "is not optional, yet has neither default value nor user provided value"
                raise Refused(400, 3, f"Invalid input error: parameter {name} {why}")
        extra = ", ".join(name for name in parameters if name not in wanted)
        if extra:
            why = "parameter(s) provided are not required by pipeline"
            raise Refused(400, 3, f"Invalid input error: {why}: {extra}")

    def _get_run(self, run_id: str, given: dict[str, str], sent: None) -> Any:
        run = self._known(self.runs, run_id, "Run")
        script = self._scripts[run_id]
        if script and run.state not in _ENDED:
            run.state = script.pop(0) if len(script) > 1 else script[0]
        states = [
            (name, state if run.state in _ENDED else "RUNNING")
            for name, given in self.steps.items()
            for state in given.split()
        ]
        details = [
            models.V2beta1PipelineTaskDetail(
                run_id=run_id,
                task_id=new_id(),
                display_name=name,
                state=state,
                error=models.GoogleRpcStatus(code=2, message=self.step_error)
                if state == "FAILED" and self.step_error
                else None,
            )
            for name, state in _nodes(states)
        ]
        run.run_details = models.V2beta1RunDetails(task_details=details) if details else None
        return run

    def _terminate(self, run_id: str, given: dict[str, str], sent: None) -> Any:
        run = self._known(self.runs, run_id, "Run")
        if run.state in _ENDED:
            raise Refused(400, 9, f"Failed to terminate the run {run_id}: it is not running")
        run.state = "CANCELING"
        self._scripts[run_id] = ["CANCELED"]

    def _retry(self, run_id: str, given: dict[str, str], sent: None) -> Any:
        run = self._known(self.runs, run_id, "Run")
        if run.state not in ("FAILED", "CANCELED"):
            raise Refused(400, 3, "Workflow must be Failed/Error to retry")
        run.state = "PENDING"
        self._scripts[run_id] = list(self.script)

    # Recurring runs

    def _create_schedule(self, given: dict[str, str], sent: Any) -> Any:
        made = parsed(sent, models.V2beta1RecurringRun)
        self._check_source(made)
        trigger = made.trigger
        if bool(trigger.cron_schedule) == bool(trigger.periodic_schedule):
            raise Refused(400, 3, "Invalid input error: a trigger is cron or periodic")
        if trigger.cron_schedule and len(trigger.cron_schedule.cron.split()) != 6:
            raise Refused(400, 3, "Invalid input error: Schedule cron is not a supported format")
        if not 1 <= int(made.max_concurrency) <= 10:
            raise Refused(400, 3, "Invalid input error: max_concurrency is 1 to 10")
        made.recurring_run_id, made.created_at = new_id(), now()
        made.status = f"{made.mode}D"
        self.schedules[made.recurring_run_id] = made
        return made

    def _switch(self, mode: str) -> Callable[..., Any]:
        def switched(schedule_id: str, given: dict[str, str], sent: None) -> Any:
            one = self._known(self.schedules, schedule_id, "RecurringRun")
            one.mode, one.status = mode, f"{mode}D"

        return switched

    def _delete(self, items: dict[str, Any], kind: str) -> Callable[..., Any]:
        def deleted(item_id: str, given: dict[str, str], sent: None) -> Any:
            self._known(items, item_id, kind)
            del items[item_id]

        return deleted

    def _known(self, items: dict[str, Any], item_id: str, kind: str) -> Any:
        if item_id not in items:
            raise Refused(404, 5, f"ResourceNotFoundError: {kind} {item_id} not found")
        return items[item_id]


def _nodes(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of Argo's workflow: each step has a driver and an executor beside it."""
    own = [("gcode-x7k2p", "RUNNING"), ("root-driver", "SUCCEEDED"), ("root", "RUNNING")]
    for name, state in steps:
        own += [(f"{name}-driver", "SUCCEEDED"), (name, state), ("executor(0)", state)]
    return own if steps else []


def parsed(sent: Any, model: Any) -> Any:
    """What was sent, as KFP's client knows it."""
    unknown = set(sent) - set(model.attribute_map.values())
    if unknown:
        raise Refused(400, 3, f"unknown field {sorted(unknown)}")
    response = type("Response", (), {"data": json.dumps(sent)})
    try:
        return models.ApiClient().deserialize(response, model)
    except (ValueError, TypeError) as error:
        raise Refused(400, 3, f"Invalid input error: {error}") from None


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> datetime:
    """KFP tells seconds."""
    return datetime.now(UTC).replace(microsecond=0)
