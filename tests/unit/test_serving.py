"""The scoring app, asked over HTTP in this process: fire, and what all workloads share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ray_jobs.bundle import Bundle, load_bundle
from ray_jobs.data.features import FEATURES
from ray_jobs.serving.model import load_model
from tests.unit.serving_models import (
    CSV,
    JSON,
    PUBLISHED,
    fire_folder,
    gcode_folder,
    post,
    predictions,
    readings,
    ready,
    refusal,
    to_csv,
)  # fmt: skip


@pytest.fixture(scope="module")
def fire() -> Iterator[TestClient]:
    with ready(lambda: load_model(fire_folder(), version="7")) as client:
        yield client


@cache
def bundle() -> Bundle:
    return load_bundle(fire_folder())


# fire: what is asked


def test_the_published_request(fire: TestClient) -> None:
    (said,) = predictions(fire, PUBLISHED)
    x = np.array([PUBLISHED.split(",")], np.float32)
    p = float(bundle().score(x)[0])
    assert said == {"probability": p, "decision": p >= 0.4, "model_version": "7"}


@pytest.mark.parametrize("num_rows", [1, 3, 300])
def test_every_form_gives_what_the_bundle_gives(fire: TestClient, num_rows: int) -> None:
    x = readings(num_rows, num_rows)
    order = np.random.default_rng(0).permutation(18)
    names = [FEATURES[number] for number in order]
    rows, records = x.tolist(), [dict(zip(FEATURES, row, strict=True)) for row in x.tolist()]
    columnar = {name: x[:, number].tolist() for number, name in enumerate(FEATURES)}
    shuffled = x[:, order]
    asked = {
        "csv": (to_csv(x), CSV),
        "csv with CRLF and a last line": (to_csv(x).replace("\n", "\r\n") + "\r\n", CSV),
        "csv with a header": (to_csv(x, FEATURES), "Text/CSV; charset=UTF-8"),
        "csv in another order": (to_csv(shuffled, names), CSV),
        "csv in quotes": (to_csv(shuffled, [f'"{name}"' for name in names]), CSV),
        "csv with a byte order mark": ("\ufeff" + to_csv(x, FEATURES), CSV),
        "split": ({"dataframe_split": {"columns": names, "data": shuffled.tolist()}}, JSON),
        "records": ({"dataframe_records": records}, JSON),
        "instances": ({"instances": rows}, JSON),
        "instances by name": ({"instances": records, "params": {}}, JSON),
        "inputs": ({"inputs": rows, "params": {"as_history": False}}, JSON),
        "inputs by column": ({"inputs": columnar}, JSON),
    }
    wanted = bundle().score(x)
    for name, (body, media_type) in asked.items():
        said = predictions(fire, body, media_type)
        assert [one["probability"] for one in said] == wanted.tolist(), name
        assert [one["decision"] for one in said] == (wanted >= 0.4).tolist(), name


def test_rows_can_be_each_others_history(fire: TestClient) -> None:
    x = readings(5, 9)
    body = {"instances": x.tolist(), "params": {"as_history": True}}
    said = [one["probability"] for one in predictions(fire, body, JSON)]
    assert said == bundle().score(x, as_history=True).tolist()
    assert said != bundle().score(x).tolist()


def test_requests_scored_together_do_not_see_each_other(fire: TestClient) -> None:
    asked = [readings(1 + number % 3, number) for number in range(24)]

    def ask(number: int) -> list[float]:
        body = {"inputs": asked[number].tolist(), "params": {"as_history": number % 2 == 0}}
        return [one["probability"] for one in predictions(fire, body, JSON)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    for number, answer in enumerate(answers):
        wanted = bundle().score(asked[number], as_history=number % 2 == 0)
        assert answer == pytest.approx(wanted.tolist(), abs=1e-6)  # sums of other batches


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv", CSV),
        ("*/*", JSON),
        ("application/json;q=0.5, text/csv", CSV),
        ("text/*", CSV),
        ("text/html, application/json;q=0.1", JSON),
    ],
)
def test_the_answer_has_the_form_that_is_accepted(
    fire: TestClient, accept: str, media_type: str
) -> None:
    x = readings(2, 4)
    response = post(fire, to_csv(x), accept=accept)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    if media_type == CSV:
        lines = [line.split(",") for line in response.text.splitlines()]
        p = bundle().score(x)
        assert [float(line[0]) for line in lines] == p.tolist()
        assert [line[1] for line in lines] == [str(int(one >= 0.4)) for one in p]


@pytest.mark.parametrize("accept", ["text/html", "text/csv;q=0", "nonsense", "text/csv;q=x"])
def test_an_answer_that_nobody_accepts(fire: TestClient, accept: str) -> None:
    response = post(fire, PUBLISHED, accept=accept)
    assert response.status_code == 406
    assert response.json() == {"error": "accept must have one of application/json, text/csv"}


# fire: what is refused

CELLS = PUBLISHED.split(",")


def row(**cells: str) -> str:
    return ",".join(cells.get(name, cell) for name, cell in zip(FEATURES, CELLS, strict=True))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            ",".join(CELLS[:17]),
            "row 1 has 17 columns where 18 are needed: column 'gas_vel' is missing",
        ),
        (
            f"{PUBLISHED}\n{PUBLISHED},1.0",
            "row 2 has 19 columns where 18 are needed: there is one after the last, column "
            "'gas_vel'",
        ),
        (f"{PUBLISHED}\n{row(t_max='nan')}", "row 2, column 't_max': nan is not a finite number"),
        (row(t_std="-inf"), "row 1, column 't_std': -inf is not a finite number"),
        (row(t_std="1e400"), "row 1, column 't_std': inf is not a finite number"),
        (row(t_std="1e39"), "row 1, column 't_std': 1e+39 is out of range"),
        (row(gas_vel="warm"), "row 1, column 'gas_vel': 'warm' is not a number"),
        (row(gas_vel="1_000"), "row 1, column 'gas_vel': '1_000' is not a number"),
        (row(gas_vel=""), "row 1, column 'gas_vel': '' is not a number"),
        (
            row(t_mean="w" * 99),
            "row 1, column 't_mean': 'wwwwwwwwwwwwwwwww...wwwwwwwwwwwwwwwwww' is not a number",
        ),
        (
            f"{PUBLISHED}\n\n{PUBLISHED}",
            "row 2 has 1 columns where 18 are needed: column 't_std' is missing",
        ),
        ("hot", "row 1, column 'hot' is none of the model's; it takes t_mean, "),
        (",".join(FEATURES), "there are no rows"),
        (
            ",".join(FEATURES[1:]) + "\n" + ",".join(CELLS[1:]),
            "row 1, column 't_mean' is missing",
        ),
        (
            ",".join([*FEATURES, "t_max"]) + "\n" + PUBLISHED + ",1",
            "row 1, column 't_max' is there twice",
        ),
    ],
)  # fmt: skip
def test_a_csv_that_cannot_be_scored_says_where(fire: TestClient, body: str, message: str) -> None:
    said = refusal(fire, body)
    assert said.startswith(message) if message.endswith(" ") else said == message


def cells(**changed: Any) -> dict[str, Any]:
    return {**dict(zip(FEATURES, map(float, CELLS), strict=True)), **changed}


VALUES = list(map(float, CELLS))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [VALUES[:17]]}, "row 1 has 17 columns where 18 are needed: column"),
        ({"inputs": [VALUES, [*VALUES, 1]]}, "row 2 has 19 columns where 18 are needed: there is"),
        ({"instances": VALUES}, "row 1 must be a list of 18 values"),
        ({"instances": []}, "instances has no rows"),
        ({"instances": 5}, "instances must be a list of rows"),
        ({"dataframe_records": [VALUES]}, "row 1 must be an object of values by column"),
        ({"dataframe_records": [cells(), {}]}, "row 2, column 't_mean' is missing"),
        ({"instances": [cells(smoke=1)]}, "row 1, column 'smoke' is none of the model's"),
        ({"instances": [cells(t_max=None)]}, "row 1, column 't_max': None is not a number"),
        ({"instances": [cells(t_max=True)]}, "row 1, column 't_max': True is not a number"),
        ({"instances": [cells(t_max="45")]}, "row 1, column 't_max': '45' is not a number"),
        ({"instances": [cells(t_max=[[[]]])]}, "row 1, column 't_max': [[[]]] is not a number"),
        ({"instances": [cells(t_max=math.nan)]}, "row 1, column 't_max': nan is not a finite"),
        ({"instances": [cells(t_max=10**400)]}, "row 1, column 't_max': 1e+300 is out of range"),
        ({"inputs": {"t_mean": 1}}, "inputs must be a list of rows, or an object of lists"),
        ({"inputs": {"t_mean": [1], "t_std": []}}, "the columns of inputs differ in length: "),
        ({"inputs": {}}, "row 1, column 't_mean' is missing"),
        ({"dataframe_split": {"columns": list(FEATURES)}}, "dataframe_split must have columns"),
        ({"dataframe_split": {"columns": [1], "data": [[1]]}}, "dataframe_split must have columns"),
        ({"dataframe_split": [VALUES]}, "dataframe_split must have columns"),
        ({"instances": [VALUES], "params": []}, "params must be an object"),
        ({"instances": [VALUES], "params": {"as_history": 1}}, 'params may hold "as_history"'),
        ({"instances": [VALUES], "params": {"history": True}}, 'params may hold "as_history"'),
    ],
)  # fmt: skip
def test_a_json_that_cannot_be_scored_says_where(fire: TestClient, body: Any, message: str) -> None:
    assert refusal(fire, body, JSON).startswith(message)


@pytest.mark.parametrize(
    ("body", "media_type", "message"),
    [
        ("", CSV, "the body is empty; give rows of 18 numbers"),
        (" \r\n\n", CSV, "the body is empty; give rows of 18 numbers"),
        (row(t_mean='"1'), CSV, "the body is not CSV: "),
        ("", JSON, "the body is not JSON: "),
        ('{"instances": [[1.0, 2.', JSON, "the body is not JSON: "),
        (b"\xff\xfe{", JSON, "the body is not JSON: "),
        ("[" * 50_000, JSON, "the body is nested too deeply"),
        ("[[1]]", JSON, "the body must be an object with one of dataframe_split, "),
        ('{"instances": [], "inputs": []}', JSON, "the body must be an object with one of "),
        ('{"instances": [], "rows": []}', JSON, "the body must be an object with one of "),
        ('{"instances": [[' + "9" * 5000 + "]]}", JSON, "the body is not JSON: Exceeds the limit"),
    ],
)
def test_a_body_that_is_none(
    fire: TestClient, body: str | bytes, media_type: str, message: str
) -> None:
    assert refusal(fire, body, media_type, status=400).startswith(message)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "content-type must be one of text/csv, application/json"),
        ({"content-type": "text/html"}, "content-type must be one of text/csv, application/json"),
        ({"content-type": "text/csv; charset=utf-16"}, "the charset of content-type must be utf-8"),
        (
            {"content-type": CSV, "content-encoding": "gzip"},
            "content-encoding must be identity: send the body as it is",
        ),
    ],
)
def test_a_media_type_that_is_not_taken(
    fire: TestClient, headers: dict[str, str], message: str
) -> None:
    response = fire.post("/invocations", content=PUBLISHED.encode(), headers=headers)
    assert (response.status_code, response.json()) == (415, {"error": message})


def test_too_much_at_once(fire: TestClient) -> None:
    assert refusal(fire, "1" * (4 << 20) + "1", status=413) == (
        "the body is larger than 4194304 bytes; send less at once"
    )
    assert refusal(fire, "\n".join([PUBLISHED] * 10_001), status=413) == (
        "10001 rows; send at most 10000 at once"
    )
    assert len(predictions(fire, "\n".join([PUBLISHED] * 10_000))) == 10_000


def test_a_body_in_parts_is_counted_as_it_comes(fire: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(64):
            yield b"1," * (1 << 16)

    response = fire.post("/invocations", content=parts(), headers={"content-type": CSV})
    assert response.status_code == 413


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(-1e15, 1e15), min_size=18, max_size=18))
def test_every_number_within_range_has_a_probability(fire: TestClient, values: list[float]) -> None:
    (said,) = predictions(fire, {"instances": [values]}, JSON)
    assert 0 <= said["probability"] <= 1


# Beside the predictions


def test_what_is_asked_beside(fire: TestClient) -> None:
    model = load_model(fire_folder(), version="7")
    about = fire.get("/version").json()
    assert about.pop("versions").keys() >= {"python", "emberline", "scikit-learn"}
    champion = {"variant": "champion", "version": "7", "digest": model.digest, "weight": 1.0,
                "is_shadow": False}  # fmt: skip
    assert about.pop("variants") == [champion]
    assert about == {"name": "fire", "version": "7", "workload": "fire", "digest": model.digest}
    assert fire.get("/ping").json() == {"status": "ready"}
    assert fire.get("/nothing").status_code == 404
    assert fire.get("/invocations").status_code == 405


def test_the_metrics_count_what_was_answered() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with ready(lambda: load_model(gcode_folder(), name="cutter")) as client:
        post(client, "text")
        post(client, "\n".join(["1,2,3"] * 8))
        response = client.get("/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    champion = ("variant", "champion")
    assert samples["emberline_requests_total", ("code", "200"), champion] == 1
    assert samples["emberline_requests_total", ("code", "422"), champion] == 1
    assert samples["emberline_rows_total", champion] == 8
    assert samples["emberline_batch_rows_count", champion] == 1
    assert samples["emberline_request_seconds_count", champion] == 2
    assert samples["emberline_requests_in_flight",] == 0
    assert samples["emberline_ready",] == 1
    (model,) = (key for key in samples if key[0] == "emberline_model_info")
    assert {("name", "cutter"), champion} <= set(model[1:])
