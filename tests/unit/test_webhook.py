"""The receiver of MLflow's webhooks: what it takes, what it refuses, and what it deploys then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from ray_jobs.errors import JobFailed, RetryableError, SpecError
from ray_jobs.storage import Storage
from ray_jobs.webhook import receive
from ray_jobs.webhooks.app import PATH, create_app
from ray_jobs.webhooks.deliveries import Deliveries
from ray_jobs.webhooks.rollouts import Deployed, Rollouts
from ray_jobs.webhooks.signature import (
    DELIVERY_ID,
    SECRET_VARIABLE,
    SIGNATURE,
    TIMESTAMP,
    Delivery,
    read_secret,
    sign,
)
from tests.unit.serving_models import wait_for

SECRET = b"0123456789abcdef-a-secret"
NOW = 1_800_000_000


class Counting:
    """Counts what is deployed. `gate` holds it up; what `faults` holds is raised first."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.version: int | None = 1  # of the champion
        self.num_looks = 0
        self.gate = threading.Event()
        self.gate.set()
        self.faults: list[Exception] = []

    def __call__(self, model: str) -> Deployed:
        self.models.append(model)
        assert self.gate.wait(60)
        if self.faults:
            raise self.faults.pop(0)
        return Deployed(self.version)

    def champion(self, _: str) -> int | None:
        self.num_looks += 1
        return self.version


@contextmanager
def receiving(folder: Path, deploy: Counting, interval_s: float = 600) -> Iterator[TestClient]:
    """The app; what it deploys at its start is not counted."""
    rollouts = Rollouts(
        deploy,
        deploy.champion,
        lambda line: None,
        interval_s=interval_s,
        pauses_s=(0.01, 0.01),
    )
    app = create_app(
        SECRET, {"fire", "waste"}, Deliveries(Storage(folder)), rollouts, clock=lambda: NOW
    )
    with TestClient(app) as client:
        wait_for(lambda: len(client.get("/status").json()["deployments"]) == 2)
        assert sorted(deploy.models) == ["fire", "waste"]
        deploy.models.clear()
        yield client


@pytest.fixture
def deploy() -> Counting:
    return Counting()


@pytest.fixture
def client(tmp_path: Path, deploy: Counting) -> Iterator[TestClient]:
    with receiving(tmp_path, deploy) as client:
        yield client


def event(
    name: str = "fire", alias: str = "champion", action: str = "created", **others: Any
) -> bytes:
    data = {"name": name, "alias": alias, "version": "2"}
    return json.dumps(
        {"entity": "model_version_alias", "action": action, "data": data, **others}
    ).encode()


def send(
    client: TestClient,
    body: bytes,
    *,
    delivery: str = "d-1",
    timestamp: str = str(NOW),
    secret: bytes = SECRET,
    **headers: str | bytes | None,
) -> Any:
    """Sign and send; a header of None is left out."""
    whole: dict[str, str | bytes | None] = {
        DELIVERY_ID: delivery,
        TIMESTAMP: timestamp,
        SIGNATURE: sign(secret, delivery, timestamp, body),
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    kept = {name: value for name, value in whole.items() if value is not None}
    return client.post(PATH, content=body, headers=kept)


def idle(client: TestClient) -> None:
    wait_for(
        lambda: (
            client.get("/status").json() | {"deployments": 0}
            == {"deploying": None, "pending": [], "deployments": 0}
        )
    )


def test_the_signature_is_mlflows() -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = event().decode()
    want = _generate_hmac_signature(SECRET.decode(), "d", "17", body)
    assert sign(SECRET, "d", "17", body.encode()) == want


@pytest.mark.parametrize("action", ["created", "deleted"])
def test_a_moved_alias_is_deployed(client: TestClient, deploy: Counting, action: str) -> None:
    answer = send(client, event(action=action))
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted", "model": "fire"})
    idle(client)
    assert deploy.models == ["fire"]
    last = client.get("/status").json()["deployments"][0]
    assert (last["model"], last["status"], last["version"]) == ("fire", "SUCCEEDED", 1)
    assert client.get("/ping").json() == {"status": "ready"}


def test_another_alias_is_none_of_its_business(client: TestClient, deploy: Counting) -> None:
    answer = send(client, event(alias="challenger"))
    assert (answer.status_code, answer.json()) == (200, {"status": "ignored"})
    idle(client)
    assert deploy.models == []


LARGE = event(more="x" * 70_000)


@pytest.mark.parametrize(
    ("body", "options", "status", "message"),
    [
        (event(), {"secret": b"another"}, 401, "the signature is not of this delivery and this"),
        (event(), {"x_mlflow_signature": "v1,"}, 401, "the signature is not of"),
        (event(), {"x_mlflow_signature": b"v1,\xe9"}, 401, "the signature is not of"),
        (event(), {"x_mlflow_signature": None}, 401, "the header x-mlflow-signature is missing"),
        (event(), {"x_mlflow_delivery_id": None}, 401, "header x-mlflow-delivery-id is missing"),
        (event(), {"x_mlflow_delivery_id": "d-2"}, 401, "the signature is not of this delivery"),
        (event(), {"x_mlflow_timestamp": str(NOW - 1)}, 401, "the signature is not of this"),
        (event(), {"timestamp": str(NOW - 301)}, 401, "more than 300 s from this machine's clock"),
        (event(), {"timestamp": str(NOW + 301)}, 401, "more than 300 s from this machine's clock"),
        (event(), {"timestamp": "soon"}, 401, "is not in seconds since 1970"),
        (event(), {"timestamp": "-5"}, 401, "is not in seconds since 1970"),
        (event(), {"delivery": "d" * 201}, 401, "x-mlflow-delivery-id is empty or too long"),
        (event("iris"), {}, 400, "model 'iris' is not deployed from here"),
        (event(action="updated"), {}, 400, "only model_version_alias.created and"),
        (event(entity="model_version"), {}, 400, "only model_version_alias.created and"),
        (b'{"entity": "model_version_alias"', {}, 400, "the body is no event of model_version_al"),
        (b"[]", {}, 400, "the body is no event of"),
        (event(data={"name": ["fire"], "alias": "champion"}), {}, 400, "the body is no event of"),
        (b"\xff\xfe", {}, 400, "the body is no event of"),
        (LARGE, {}, 413, "the body is larger than 65536 bytes"),
    ],
)
def test_what_is_refused_deploys_nothing(
    client: TestClient,
    deploy: Counting,
    body: bytes,
    options: dict[str, Any],
    status: int,
    message: str,
) -> None:
    answer = send(client, body, **options)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert SECRET.decode() not in answer.text
    idle(client)
    assert deploy.models == []


def test_an_altered_body_is_refused(client: TestClient, deploy: Counting) -> None:
    signature = sign(SECRET, "d-1", str(NOW), event("waste"))
    answer = send(client, event(), x_mlflow_signature=signature)
    assert answer.status_code == 401
    assert deploy.models == []


def test_a_replay_is_refused_also_after_a_restart(tmp_path: Path, deploy: Counting) -> None:
    with receiving(tmp_path, deploy) as client:
        assert send(client, event()).status_code == 202
        idle(client)
        for _ in range(2):
            answer = send(client, event())
            assert answer.status_code == 400
            assert answer.json() == {"error": "it was delivered before"}
        assert send(client, event(), delivery="d-2").status_code == 202
        idle(client)
    assert deploy.models == ["fire", "fire"]
    deploy.models.clear()
    with receiving(tmp_path, deploy) as client:
        assert send(client, event()).status_code == 400
        idle(client)
    assert deploy.models == []


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    deliveries = Deliveries(Storage(tmp_path))
    for number in range(20):
        assert deliveries.take(Delivery(f"../{number}", NOW + 100 * number), NOW + 100 * number)
    kept = sorted(path.name.partition("-")[0] for path in tmp_path.rglob("*") if path.is_file())
    assert kept == [str(NOW + 100 * number) for number in range(13, 20)]


# What is done then


def test_one_at_a_time_and_one_more_for_all_that_came_meanwhile(
    client: TestClient, deploy: Counting
) -> None:
    deploy.gate.clear()
    assert send(client, event(), delivery="first").status_code == 202
    wait_for(lambda: deploy.models == ["fire"])
    for number in range(10):  # they are answered at once
        assert send(client, event(), delivery=f"later {number}").status_code == 202
    assert send(client, event("waste"), delivery="another").status_code == 202
    status = client.get("/status").json()
    assert (status["deploying"], status["pending"]) == ("fire", ["fire", "waste"])
    deploy.gate.set()
    idle(client)
    assert deploy.models == ["fire", "fire", "waste"]


@pytest.mark.parametrize(
    ("faults", "tries", "status", "reason"),
    [
        ([RetryableError("busy")], 2, "SUCCEEDED", None),
        ([RetryableError("busy")] * 3, 3, "FAILED", "busy"),
        ([JobFailed("it answers otherwise")], 1, "FAILED", "it answers otherwise"),
    ],
)
def test_deployments_that_fail(
    client: TestClient,
    deploy: Counting,
    faults: list[Exception],
    tries: int,
    status: str,
    reason: str | None,
) -> None:
    deploy.faults = list(faults)
    assert send(client, event()).status_code == 202
    idle(client)
    assert len(deploy.models) == tries
    last = client.get("/status").json()["deployments"][0]
    assert (last["status"], last["reason"]) == (status, reason)
    assert send(client, event(), delivery="d-2").status_code == 202  # it goes on
    idle(client)
    assert client.get("/status").json()["deployments"][0]["status"] == "SUCCEEDED"


def test_a_move_of_which_no_event_came(tmp_path: Path, deploy: Counting) -> None:
    """The registry is looked at, too; what was refused for good is left alone, what may pass is
    tried again at the next look."""
    with receiving(tmp_path, deploy, interval_s=0.02) as client:

        def looked() -> None:
            seen = deploy.num_looks
            wait_for(lambda: deploy.num_looks >= seen + 10)
            idle(client)

        looked()
        assert deploy.models == []
        deploy.version = 2
        looked()
        assert sorted(deploy.models) == ["fire", "waste"]
        deploy.models.clear()
        deploy.faults, deploy.version = [JobFailed("it answers otherwise")] * 2, 3
        looked()
        assert sorted(deploy.models) == ["fire", "waste"]
        deploy.models.clear()
        deploy.faults, deploy.version = [RetryableError("busy")] * 3, None
        looked()
        last = client.get("/status").json()["deployments"]
        assert [one["status"] for one in last[:3]].count("FAILED") == 1
        assert len(deploy.models) == 5  # three times in vain, and each once


# The process


@pytest.mark.parametrize(("secret", "message"), [("", "is not set"), ("short", "is too short")])
def test_without_a_secret_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: str, message: str
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    with pytest.raises(SpecError, match=f"{SECRET_VARIABLE} {message}; set it to at least 16"):
        receive(str(tmp_path), ["fire"], say=print)
    monkeypatch.setenv(SECRET_VARIABLE, "0123456789abcdef")
    assert read_secret() == b"0123456789abcdef"
    with pytest.raises(SpecError, match="no model is registered under"):
        receive(str(tmp_path / "nothing"), ["fire"], say=print)
    assert not (tmp_path / "nothing").exists()


CODE = """
import sys
from pathlib import Path
import mlflow
from ray_jobs.webhook import receive
from ray_jobs.webhooks.rollouts import Deployed
root, fault = Path(sys.argv[1]), sys.argv[2]
mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db").create_registered_model("fire")
def deploy(model):
    if fault and (root / "deployed").exists():
        raise ZeroDivisionError(fault)
    with (root / "deployed").open("a") as file:
        file.write(model + "\\n")
    return Deployed(None)
sys.exit(receive(str(root), ["fire"], port=0, deploy=deploy,
                 say=lambda line: print(line, file=sys.stderr, flush=True)))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["", "a fault of ours"])
def test_as_a_process(tmp_path: Path, fault: str) -> None:
    """It ends at SIGTERM, and by itself, loudly, where it would not deploy any more."""
    environment = os.environ | {SECRET_VARIABLE: SECRET.decode()}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path), fault],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = process.stderr
        try:
            said = _until(lines.readline, "receiving webhooks for fire at ")
            url = said[-1].split()[-1].removesuffix(PATH)
            wait_for((tmp_path / "deployed").exists)
            body, timestamp = event(), str(int(time.time()))
            headers = {
                DELIVERY_ID: "d",
                TIMESTAMP: timestamp,
                SIGNATURE: sign(SECRET, "d", timestamp, body),
            }
            assert httpx2.post(url + PATH, content=body, headers=headers).status_code == 202
            if not fault:
                wait_for(lambda: (tmp_path / "deployed").read_text() == "fire\nfire\n")
                process.terminate()
            said += process.communicate(timeout=120)[1].splitlines()
            assert process.returncode == (1 if fault else 0), said
            assert (f"ZeroDivisionError: {fault}" in said) == bool(fault)
            assert not any(SECRET.decode() in line for line in said)
        finally:
            process.kill()


def _until(read: Callable[[], str], start: str) -> list[str]:
    lines = [read()]
    while not lines[-1].startswith(start):
        assert lines[-1], lines
        lines.append(read())
    return [line.rstrip("\n") for line in lines]
