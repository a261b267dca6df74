"""Champion and challenger in one worker: who answers, who is only asked, and who is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ray_jobs.errors import JobFailed
from ray_jobs.monitoring.observation import Observation
from ray_jobs.serving import service as service_module
from ray_jobs.serving.app import create_app
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.model import Model, load_model
from ray_jobs.serving.routing import is_chosen
from ray_jobs.serving.scorer import CSV, JSON, Limits
from ray_jobs.serving.service import Service
from ray_jobs.serving.variants import Challenger
from tests.unit.serving_models import (
    PUBLISHED,
    WAIT_S,
    fire_folder,
    gcode_folder,
    post,
    wait_for,
)  # fmt: skip

# Routing


@given(request_id=st.text(max_size=60), share=st.floats(0, 1), more=st.floats(0, 1))
def test_the_same_id_meets_the_same_variant_and_stays_when_the_share_grows(
    request_id: str, share: float, more: float
) -> None:
    low, high = sorted((share, more))
    chosen = is_chosen(request_id, low, "split")
    assert chosen == is_chosen(request_id, low, "split")
    assert not chosen or is_chosen(request_id, high, "split")
    assert not is_chosen(request_id, 0.0, "split")
    assert is_chosen(request_id, 1.0, "split")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.95])
def test_the_share_of_the_ids_is_the_weight(share: float) -> None:
    num = 20_000
    chosen = sum(is_chosen(f"request-{number}", share, "split") for number in range(num))
    assert abs(chosen - num * share) < 5 * (num * share * (1 - share)) ** 0.5


def test_who_is_recorded_says_nothing_of_who_answers() -> None:
    ids = [str(number) for number in range(20_000)]
    recorded = [each for each in ids if is_chosen(each, 0.2, "record")]
    answered = sum(is_chosen(each, 0.2, "split") for each in recorded)
    assert abs(answered - 0.2 * len(recorded)) < 5 * (0.16 * len(recorded)) ** 0.5


# The service


class Echo:
    """A scorer that answers with what it is given and who it is, once it is let."""

    limits = Limits(max_body_bytes=1000, max_rows=10, max_batch_rows=4, max_queue=100)
    media_types = (CSV,)
    answer_types = (JSON,)
    num_threads = 1
    parses_slowly = False

    def __init__(self, content: Any = "text") -> None:
        self.open = threading.Event()
        self.open.set()
        self.asked: list[str] = []
        self._content = content

    def parse(self, body: bytes, media_type: str) -> str:
        if body.startswith(b"bad"):
            raise BadInput("row 1 is bad")
        return body.decode()

    def score(self, batch: Sequence[str]) -> list[str]:
        if batch != ["warm"]:
            assert self.open.wait(WAIT_S)
            self.asked += batch
            if any("fault" in one for one in batch):
                raise ZeroDivisionError("secret")
        return list(batch)

    def render(self, answer: str, media_type: str, model_version: str) -> bytes:
        return json.dumps([answer, model_version]).encode()

    def example(self) -> str:
        return "warm"

    def observe(self, inputs: str, answer: str | None) -> Observation:
        return Observation({}, {"label": [answer or ""]})

    def request_content(self) -> dict[str, Any]:
        return {CSV: self._content}


@contextmanager
def both(
    mode: Any, weight: float, champion: Echo | None = None, challenger: Echo | None = None
) -> Iterator[TestClient]:
    first = Model("echo", "1", "echo", "a", champion or Echo())  # type: ignore[arg-type]
    second = Model("echo", "2", "echo", "b", challenger or Echo())  # type: ignore[arg-type]
    service = Service(lambda: first, challenger=Challenger(lambda: second, mode, weight))
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        yield client


def metric(client: TestClient, line: str) -> float:
    for each in client.get("/metrics").text.splitlines():
        name, _, value = each.rpartition(" ")
        if name == line:
            return float(value)
    return 0.0


def test_a_split_is_sticky_and_says_who_answered() -> None:
    with both("split", 0.4) as client:
        answered: dict[str, str] = {}
        for number in (*range(60), *range(60)):
            request_id = f"r{number}"
            response = post(client, "a", **{"x-request-id": request_id})
            variant = response.headers["x-emberline-variant"]
            assert response.headers["x-request-id"] == request_id
            assert response.json() == ["a", {"champion": "1", "challenger": "2"}[variant]]
            assert answered.setdefault(request_id, variant) == variant
            expected = "challenger" if is_chosen(request_id, 0.4, "split") else "champion"
            assert variant == expected
        assert set(answered.values()) == {"champion", "challenger"}
        counted = [
            metric(client, f'emberline_requests_total{{code="200",variant="{role}"}}')
            for role in ("champion", "challenger")
        ]
        assert sum(counted) == 120
        assert counted[1] == 2 * list(answered.values()).count("challenger")
        told = client.get("/version").json()["variants"]
        assert [
            (one["variant"], one["version"], one["weight"], one["is_shadow"]) for one in told
        ] == [
            ("champion", "1", 0.6, False),
            ("challenger", "2", 0.4, False),
        ]


def test_sagemakers_id_is_an_id_and_who_sends_none_is_given_one() -> None:
    with both("split", 1.0) as client:
        named = post(client, "a", **{"x-amzn-sagemaker-inference-id": "mine"})
        assert named.headers["x-request-id"] == "mine"
        given_ids = {post(client, "a").headers["x-request-id"] for _ in range(5)}
        assert len(given_ids) == 5
        assert all(len(each) == 32 for each in given_ids)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "\xe4", "a\tb"])
def test_an_id_that_is_none_is_refused(request_id: str) -> None:
    with both("split", 0.5) as client:
        response = post(client, "a", **{"x-request-id": request_id.encode("latin-1")})
        assert response.status_code == 400
        assert response.json() == {
            "error": "x-request-id must be 1 to 128 visible characters of ASCII, without blanks; "
            "leave it out to be given one"
        }
        assert "x-request-id" not in response.headers
        assert metric(client, 'emberline_requests_total{code="400",variant="none"}') == 1


def test_a_shadow_is_asked_the_same_and_answers_nobody() -> None:
    shadow = Echo()
    with both("shadow", 1.0, challenger=shadow) as client:
        for number in range(20):
            response = post(client, f"row {number}")
            assert response.headers["x-emberline-variant"] == "champion"
            assert response.json() == [f"row {number}", "1"]
        wait_for(lambda: len(shadow.asked) == 20)
        assert sorted(shadow.asked) == sorted(f"row {number}" for number in range(20))
        assert post(client, "bad").status_code == 422  # neither is asked
        wait_for(lambda: metric(client, 'emberline_shadow_requests_total{outcome="200"}') == 20)
        assert metric(client, 'emberline_shadow_requests_total{outcome="422"}') == 0
        told = client.get("/version").json()["variants"]
        assert [(one["weight"], one["is_shadow"]) for one in told] == [(1.0, False), (0.0, True)]


def test_a_shadow_sees_its_share() -> None:
    shadow = Echo()
    with both("shadow", 0.3, challenger=shadow) as client:
        for number in range(100):
            post(client, f"r{number}", **{"x-request-id": f"r{number}"})
        expected = {f"r{n}" for n in range(100) if is_chosen(f"r{n}", 0.3, "shadow")}
        wait_for(lambda: set(shadow.asked) == expected)
        assert 10 < len(expected) < 60


def test_what_goes_wrong_in_a_shadow_stays_there(capfd: pytest.CaptureFixture[str]) -> None:
    class Faulty(Echo):
        def score(self, batch: Sequence[str]) -> list[str]:
            if batch != ["warm"]:
                raise ZeroDivisionError("secret")
            return list(batch)

    with both("shadow", 1.0, challenger=Faulty()) as client:
        assert [post(client, "a").json() for _ in range(5)] == [["a", "1"]] * 5
        wait_for(lambda: metric(client, 'emberline_shadow_requests_total{outcome="500"}') == 5)
        assert metric(client, 'emberline_requests_total{code="500",variant="challenger"}') == 0
    assert "ZeroDivisionError: secret" in capfd.readouterr().err


def test_a_shadow_that_lags_is_dropped_and_counted_and_delays_nobody() -> None:
    shadow = Echo()
    shadow.open.clear()  # it answers nothing
    try:
        with both("shadow", 1.0, challenger=shadow) as client:
            for _ in range(70):
                assert post(client, "a").json() == ["a", "1"]
            dropped = 'emberline_shadow_requests_total{outcome="dropped"}'
            wait_for(lambda: metric(client, dropped) == 70 - 64)
            shadow.open.set()
            wait_for(lambda: metric(client, 'emberline_shadow_requests_total{outcome="200"}') == 64)
    finally:
        shadow.open.set()


def test_what_a_shadow_holds_of_bodies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_MAX_SHADOW_BYTES", 250)
    shadow = Echo()
    shadow.open.clear()
    try:
        with both("shadow", 1.0, challenger=shadow) as client:
            for body in ("x" * 9, *["y" * 9] * 30):
                assert post(client, body).status_code == 200
            dropped = 'emberline_shadow_requests_total{outcome="dropped"}'
            wait_for(lambda: metric(client, dropped) == 31 - 27)  # 27 of 9 bytes are 243
            shadow.open.set()
            wait_for(lambda: metric(client, 'emberline_shadow_requests_total{outcome="200"}') == 27)
            assert post(client, "z").status_code == 200  # there is room again
            wait_for(lambda: "z" in shadow.asked)
    finally:
        shadow.open.set()


def test_a_champion_that_fails_is_no_reason_not_to_ask_the_shadow() -> None:
    class Careful(Echo):
        def score(self, batch: Sequence[str]) -> list[str]:
            self.asked += batch
            return list(batch)

    shadow = Careful()
    with both("shadow", 1.0, challenger=shadow) as client:
        assert post(client, "fault").status_code == 500
        wait_for(lambda: "fault" in shadow.asked)
        assert metric(client, 'emberline_requests_total{code="500",variant="champion"}') == 1


def test_each_has_a_queue_of_its_own() -> None:
    """The challenger's lag holds up only those whom it answers."""
    challenger = Echo()
    ids = [f"r{number}" for number in range(20)]
    its = [each for each in ids if is_chosen(each, 0.5, "split")]
    others = [each for each in ids if each not in its]
    with both("split", 0.5, challenger=challenger) as client, ThreadPoolExecutor(4) as pool:
        challenger.open.clear()
        try:
            waiting = pool.submit(post, client, "a", **{"x-request-id": its[0]})
            for each in others:
                assert post(client, "b", **{"x-request-id": each}).json() == ["b", "1"]
            assert not waiting.done()
        finally:
            challenger.open.set()
        assert waiting.result(WAIT_S).json() == ["a", "2"]


# Who is refused


def refusal_of(first: Callable[[], Model], second: Callable[[], Model], mode: Any) -> str:
    service = Service(first, challenger=Challenger(second, mode, 0.1))
    with TestClient(create_app(service)) as client:
        wait_for(service.loading.done)
        assert client.get("/ping").status_code == 503
        error = service.loading.exception()
        assert isinstance(error, JobFailed)
        return str(error)


@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_a_challenger_that_does_not_fit_is_refused_at_the_start(mode: str, tmp_path: Any) -> None:
    fire, gcode = (lambda: load_model(fire_folder())), (lambda: load_model(gcode_folder()))
    assert refusal_of(fire, gcode, mode) == (
        "the challenger is a model of gcode, the champion one of fire: name a challenger of the "
        "same workload"
    )
    one, other = Echo("two columns"), Echo("three columns")
    assert refusal_of(
        lambda: Model("echo", "1", "echo", "a", one),  # type: ignore[arg-type]
        lambda: Model("echo", "2", "echo", "b", other),  # type: ignore[arg-type]
        mode,
    ) == (
        "the challenger (version 2) takes other requests than the champion (version 1): they "
        "differ in text/csv; name one that was trained on the same columns"
    )
    assert "bundle.json is missing" in refusal_of(fire, lambda: load_model(tmp_path), mode)


def test_the_description_names_both() -> None:
    load = lambda: load_model(fire_folder())  # noqa: E731
    service = Service(load, challenger=Challenger(load, "split", 0.5))
    with TestClient(create_app(service)) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        operation = client.get("/openapi.json").json()["paths"]["/invocations"]["post"]
        headers = operation["responses"]["200"]["headers"]
        assert headers["x-emberline-variant"]["schema"]["enum"] == ["champion", "challenger"]
        assert {h.lower() for h in headers} <= post(client, PUBLISHED).headers.keys()
