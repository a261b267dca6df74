from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.errors import PreflightError, RetryableError, SpecError
from ray_jobs.result import JobResult
from ray_jobs.run import RESULT, Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import JobState, wait
from ray_jobs.targets.ray import RayTarget
from ray_jobs.targets.ray_spec import RaySpec

REPOSITORY = Path(__file__).parents[2]


class Dashboard(ThreadingHTTPServer):
    """A cluster's dashboard that answers what a test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.code = 200  # of every answer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/api/version":
            self._send({"ray_version": "2.60.0", "version": "4"})
        elif self.path == "/api/jobs/":
            self._send(list(self.server.jobs.values()))
        elif name in self.server.jobs:
            self._send(self.server.jobs[name])
        else:
            self._send({}, 404)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = request["submission_id"]
        if name in self.server.jobs:
            self._send({}, 500)
            return
        self.server.submitted.append(request)
        self.server.jobs[name] = job(name, "RUNNING")
        self._send({"submission_id": name, "job_id": name})

    def _send(self, content: object, code: int = 200) -> None:
        self.send_response(code if self.server.code == 200 else self.server.code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""


def job(name: str, status: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x",
        "start_time": 1_700_000_000_000, **fields,
    }  # fmt: skip


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    server = Dashboard()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(load_spec("fire", storage=str(tmp_path)), "night")


def target(dashboard: Dashboard, **settings: Any) -> RayTarget:
    return RayTarget(RaySpec(address=dashboard.address, **{"working_dir": None, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"address": "ray://head:10001"},
            "'ray://head:10001' is not the address of a cluster's dashboard; write it as "
            "http://HOST:8265",
        ),
        (
            {"runtime_env": {"working_dir": "."}},
            "set ray.working_dir and not ray.runtime_env.working_dir",
        ),
        ({"runtime_env": {"env_vars": ["A"]}}, "env_vars is a mapping of names to texts"),
        (
            {"env": ["A=b"]},
            "'A=b' is not the name of a variable; its value goes to ray.runtime_env.env_vars",
        ),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        RaySpec(**settings)


def test_an_address_is_needed() -> None:
    with pytest.raises(
        SpecError, match=r"ray\.address is required: --set ray\.address=http://HOST:8"
    ):
        RayTarget(RaySpec())


def test_a_variable_that_would_lead_elsewhere_is_refused(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    message = f"=http://127.0.0.1:1 would take the place of ray.address={dashboard.address}"
    with pytest.raises(SpecError, match=re.escape(message)):
        target(dashboard).list()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (401, PreflightError, "refuses this user's token, or there is none; set RAY_AUTH_MODE"),
        (403, PreflightError, "refuses this user's token"),
        (503, RetryableError, "does not answer (HTTPError); look whether its head is up"),
    ],
)
def test_a_refusal_is_told_from_a_failure(
    dashboard: Dashboard, code: int, error: type[Exception], words: str
) -> None:
    dashboard.code = code
    with pytest.raises(error, match=re.escape(words)):
        target(dashboard).list()


def test_a_cluster_that_breaks_down_may_be_asked_again(dashboard: Dashboard, run: Run) -> None:
    there = target(dashboard)
    handle = there.submit(run)
    dashboard.code = 500
    with pytest.raises(RetryableError, match="cannot do it: Request failed with status code 500"):
        there.status(handle)
    with pytest.raises(RetryableError):
        wait(there, handle, interval_s=0.01, patience_s=0.05)
    threading.Timer(0.2, lambda: setattr(dashboard, "code", 200)).start()
    dashboard.jobs[handle.name] = job(handle.name, "STOPPED")
    assert wait(there, handle, interval_s=0.01).status == "STOPPED"


def test_nobody_at_the_address() -> None:
    there = RayTarget(RaySpec(address="http://127.0.0.1:9"))
    with pytest.raises(RetryableError, match="does not answer"):
        there.list()


def test_the_checks_name_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_NAME", raising=False)
    settings = RaySpec(
        address="http://127.0.0.1:9", working_dir=str(tmp_path), env=["NO_SUCH_NAME"]
    )
    checklist = RayTarget(settings).check(load_spec("fire", storage=str(tmp_path / "runs")))
    assert [check.name for check in checklist.failed] == [
        "Ray cluster",
        "working tree",
        "variables",
    ]
    with pytest.raises(PreflightError) as error:
        checklist.raise_failed()
    assert "the Ray cluster at http://127.0.0.1:9 does not answer" in str(error.value)
    assert (
        f"ray.working_dir: {tmp_path} has no ray_jobs/train.py; set it to the project's folder, or "
        "to null where the cluster's image has the project" in str(error.value)
    )
    assert "ray.env names NO_SUCH_NAME, which is not set here" in str(error.value)


def test_what_is_submitted(dashboard: Dashboard, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not to be sent")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    there = target(
        dashboard,
        env=["AWS_PROFILE"],
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        entrypoint_num_cpus=2,
        entrypoint_memory_gb=0.5,
    )
    handle = there.submit(run)
    assert there.submit(run) == handle
    (request,) = dashboard.submitted
    uri = run.storage.uri
    assert request["entrypoint"] == (
        f"python -m ray_jobs.train --spec {uri}/fire/night/spec.yaml --run-id night --storage {uri}"
    )
    assert request["submission_id"] == "fire-night"
    assert request["metadata"]["emberline.run_id"] == "night"
    assert request["runtime_env"]["env_vars"] == {
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "MLFLOW_TRACKING_URI": "http://mlflow",
        "AWS_PROFILE": "mine",
        "OMP_NUM_THREADS": "1",
    }
    assert request["entrypoint_num_cpus"] == 2
    assert request["entrypoint_memory"] == 2**29


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "PENDING"}, ("PENDING", None, False)),
        ({"status": "RUNNING"}, ("RUNNING", None, False)),
        ({"status": "STOPPED"}, ("STOPPED", "it was stopped", False)),
        ({"status": "FAILED", "driver_exit_code": 130}, ("STOPPED", "it was stopped", False)),
        (
            {"status": "FAILED", "driver_exit_code": 2, "message": "logs:\nerror: no such key\n"},
            ("FAILED", "no such key", False),
        ),
        (
            {"status": "FAILED", "driver_exit_code": 5, "message": "error: no network"},
            ("FAILED", "no network", True),
        ),
        (
            {"status": "FAILED", "driver_exit_code": 137, "message": "exit code 137\nmore"},
            ("FAILED", "exit code 137", True),
        ),
        (
            {"status": "FAILED", "message": "node died", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"},
            ("FAILED", "node died", True),
        ),
        (
            {"status": "FAILED", "message": "pip", "error_type": "RUNTIME_ENV_SETUP_FAILURE"},
            ("FAILED", "pip", False),
        ),
    ],
)
def test_what_the_cluster_says_of_a_job(
    dashboard: Dashboard, run: Run, fields: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    dashboard.jobs["fire-night"] = job("fire-night", **fields)
    there = target(dashboard)
    state = there.status(there.handle(run))
    assert (state.status, state.reason, state.may_be_retried) == expected


def test_a_job_that_ended_well_without_a_result_failed(dashboard: Dashboard, run: Run) -> None:
    dashboard.jobs["fire-night"] = job("fire-night", "SUCCEEDED", driver_exit_code=0)
    there = target(dashboard)
    state = there.status(there.handle(run))
    assert state.status == "FAILED"
    assert state.reason == f"the job ended without a result in {run.storage.local(run.folder)}"
    run.storage.write_text(run.path(RESULT), "{}")
    assert "is not a result of this version" in str(there.status(there.handle(run)).reason)


def test_a_lost_job_is_submitted_again_under_the_next_attempt(
    dashboard: Dashboard, run: Run
) -> None:
    there = target(dashboard)
    handle = there.submit(run)
    dashboard.jobs[handle.name] = job(handle.name, "FAILED", message="node died")
    states: list[JobState] = []

    def on_poll(state: JobState) -> None:
        states.append(state)
        name = f"{handle.name}~{len(dashboard.submitted)}"
        dashboard.jobs[name] = job(name, "FAILED", message="node died")

    end = wait(there, handle, interval_s=0.01, max_attempts=3, on_poll=on_poll)
    assert (end.status, end.details["attempt"]) == ("FAILED", "3")
    assert [request["submission_id"] for request in dashboard.submitted] == [
        "fire-night", "fire-night~2", "fire-night~3",
    ]  # fmt: skip
    assert target(dashboard).submit(run) == handle  # another process, which knows none of them
    assert dashboard.submitted[-1]["submission_id"] == "fire-night~4"


def test_a_cluster_that_was_started_anew_knows_no_job(dashboard: Dashboard, run: Run) -> None:
    there = target(dashboard)
    handle = there.handle(run)
    assert there.status(handle) == JobState(
        "PENDING", "it has not been submitted", is_submitted=False
    )
    there.submit(run)
    dashboard.jobs[handle.name] = job(handle.name, "FAILED", message="node died")
    there.submit(run)
    dashboard.jobs.clear()
    state = there.status(handle)
    assert (state.status, state.may_be_retried) == ("FAILED", True)
    assert "does not know the run: its head was started anew" in str(state.reason)
    target(dashboard).submit(run)  # by another process
    assert dashboard.submitted[-1]["submission_id"] == "fire-night"
    assert there.status(handle).status == "RUNNING"


def test_the_list_has_only_what_this_project_submitted(dashboard: Dashboard, run: Run) -> None:
    there = target(dashboard)
    handle = there.submit(run)
    tags = dashboard.submitted[0]["metadata"]
    dashboard.jobs = {
        "other": job("other", "RUNNING", metadata={"emberline.run_id": "x"}),
        "fire-night": job("fire-night", "FAILED", metadata=tags),
        "fire-night~2": job("fire-night~2", "RUNNING", metadata=tags),
    }
    assert there.list() == [handle]


def test_a_result_outlives_its_cluster(dashboard: Dashboard, run: Run) -> None:
    there = target(dashboard)
    handle = there.submit(run)
    dashboard.code = 500
    result = JobResult(
        run_id=run.run_id,
        workload="fire",
        status="STOPPED",
        objective=run.spec.objective,
        seed=0,
        started_at=datetime.now(UTC),
    )
    run.write_result(result)
    with pytest.raises(RetryableError):  # it may have been taken up since
        there.status(handle)
    run.write_result(result.model_copy(update={"status": "SUCCEEDED"}))
    assert there.status(handle).status == "SUCCEEDED"
