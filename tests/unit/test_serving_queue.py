"""The queue before the model, and the life of its service."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from ray_jobs.serving.app import create_app
from ray_jobs.serving.model import Model, load_model
from ray_jobs.serving.scorer import Limits
from ray_jobs.serving.server import listen
from ray_jobs.serving.service import Service
from tests.unit.serving_models import CSV, JSON, WAIT_S, post, ready, serving, wait_for


class Gate:
    """A scorer that answers with what it is given, once it is let."""

    limits = Limits(max_body_bytes=1000, max_rows=10, max_batch_rows=4, max_queue=3)
    media_types = (CSV,)
    answer_types = (JSON,)
    num_threads = 1
    parses_slowly = False

    def __init__(self) -> None:
        self.open, self.batches = threading.Event(), list[list[str]]()

    def parse(self, body: bytes, media_type: str) -> str:
        return body.decode()

    def score(self, batch: Sequence[str]) -> list[str]:
        if batch == ["warm"]:
            return list(batch)
        self.batches.append(list(batch))
        assert self.open.wait(WAIT_S)
        if any("fault" in one for one in batch):
            raise ZeroDivisionError("secret")
        return list(batch)

    def render(self, answer: str, media_type: str, model_version: str) -> bytes:
        return json.dumps(answer).encode()

    def example(self) -> str:
        return "warm"


@contextmanager
def gated(**limits: Any) -> Iterator[tuple[Gate, TestClient]]:
    gate = Gate()
    with ready(lambda: Model("gate", "1", "gate", "0", gate), **limits) as client:
        try:
            yield gate, client
        finally:
            gate.open.set()


def wait_for_requests(client: TestClient, number: int) -> None:
    wait_for(lambda: f"requests_in_flight {number}.0" in client.get("/metrics").text)


def test_a_full_queue_says_when_to_come_again() -> None:
    with gated() as (gate, client), ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, client, str(number)) for number in range(3)]
        wait_for_requests(client, 3)
        response = post(client, "4")
        assert response.status_code == 429
        assert response.json() == {"error": "3 requests are waiting; try again in a second"}
        assert response.headers["retry-after"] == "1"
        gate.open.set()
        assert [future.result().json() for future in accepted] == ["0", "1", "2"]
        assert post(client, "4").json() == "4"


def test_what_waits_is_scored_together_up_to_the_rows_of_a_batch() -> None:
    with gated(max_queue=20) as (gate, client), ThreadPoolExecutor(20) as pool:
        first = pool.submit(post, client, "a")
        wait_for(lambda: gate.batches == [["a"]])
        rest = []
        for number, text in enumerate(("bb", "cc", "dd", "eeeeee", "f"), start=2):
            rest.append(pool.submit(post, client, text))
            wait_for_requests(client, number)
        gate.open.set()
        assert first.result().json() == "a"
        assert [future.result().json() for future in rest] == ["bb", "cc", "dd", "eeeeee", "f"]
        assert gate.batches == [["a"], ["bb", "cc"], ["dd"], ["eeeeee"], ["f"]]


def test_a_failure_is_the_failure_of_one_request() -> None:
    with gated(max_queue=20, max_batch_rows=20) as (gate, client), ThreadPoolExecutor(20) as pool:
        first = pool.submit(post, client, "a")
        wait_for(lambda: gate.batches == [["a"]])
        rest = [pool.submit(post, client, text) for text in ("b", "c")]
        fault = pool.submit(post, client, "fault")
        wait_for_requests(client, 4)
        gate.open.set()
        assert [future.result().status_code for future in (first, *rest)] == [200, 200, 200]
        together, *alone = gate.batches[1:]  # in whichever order they came
        assert sorted(together) == ["b", "c", "fault"]
        assert alone == [[each] for each in together]
        failed = fault.result()
        assert (failed.status_code, failed.json()) == (
            500,
            {"error": "the model failed; the server's log says how"},
        )
        assert 'requests_total{code="500",variant="champion"} 1.0' in client.get("/metrics").text


def test_who_waits_too_long_is_told_so_and_not_scored() -> None:
    with gated(timeout_s=0.3) as (gate, client), ThreadPoolExecutor(3) as pool:
        late = [pool.submit(post, client, text).result() for text in ("a", "b")]
        assert [(one.status_code, one.json()) for one in late] == [
            (504, {"error": "no answer within 0.3 s"})
        ] * 2
        gate.open.set()
        wait_for(lambda: post(client, "c").status_code == 200)
        assert ["b"] not in gate.batches
        assert "requests_in_flight 0.0" in client.get("/metrics").text


# From its beginning to its end


def test_a_model_that_loads_is_not_asked_yet() -> None:
    loaded = threading.Event()

    def load() -> Model:
        assert loaded.wait(WAIT_S)
        return Model("gate", "1", "gate", "0", Gate())

    with serving(load) as client:
        ping = client.get("/ping")
        assert (ping.status_code, ping.json()) == (503, {"status": "loading"})
        for response in (post(client, "1"), client.get("/version"), client.get("/openapi.json")):
            assert response.status_code == 503
            assert response.json() == {
                "error": "the model is still being loaded; ask again when /ping says 200"
            }
        loaded.set()
        wait_for(lambda: client.get("/ping").status_code == 200)


def test_a_model_that_drains_wants_no_more_but_answers_what_comes() -> None:
    gate = Gate()
    service = Service(lambda: Model("gate", "1", "gate", "0", gate))
    with TestClient(create_app(service)) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        gate.open.set()
        service.drain()
        ping = client.get("/ping")
        assert (ping.status_code, ping.json()) == (503, {"status": "draining"})
        assert post(client, "1").json() == "1"
        assert "emberline_ready 0.0" in client.get("/metrics").text


def test_a_folder_is_a_model_or_the_loading_fails(tmp_path: Path) -> None:
    service = Service(lambda: load_model(tmp_path))
    with TestClient(create_app(service)) as client:
        wait_for(service.loading.done)
        assert client.get("/ping").status_code == 503
        assert "bundle.json is missing" in str(service.loading.exception())


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Its head and its body are sent one after the other: Nagle's algorithm would hold the second
    back until the first is acknowledged."""

    async def no_delay() -> int:
        options: list[int] = []

        async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(look, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()
        return options[0]

    assert asyncio.run(no_delay()) != 0
