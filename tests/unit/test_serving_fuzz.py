"""Whatever comes to /invocations, of every workload; and that /openapi.json tells the truth."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ray_jobs.data.features import FEATURES
from ray_jobs.serving.model import load_model
from tests.unit.serving_models import (
    CSV,
    JSON,
    PUBLISHED,
    fire_folder,
    gcode_folder,
    picture,
    post,
    ready,
    to_csv,
    waste_folder,
)  # fmt: skip

FOLDERS = {"fire": fire_folder, "waste": waste_folder, "gcode": gcode_folder}


@pytest.fixture(scope="module", params=FOLDERS)
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    with ready(lambda: load_model(FOLDERS[request.param]())) as client:
        yield client


TEXTS = st.text(max_size=60) | st.sampled_from([PUBLISHED, ",".join(FEATURES), "nan", "1e999"])
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*FEATURES[:3], "columns", "data", "image"]), inner)
    ),
    max_leaves=12,
)
BODIES = st.one_of(
    st.binary(max_size=400),
    st.lists(st.lists(TEXTS, max_size=20).map(",".join), max_size=4).map("\n".join),
    st.lists(st.lists(st.floats() | st.integers(), min_size=17, max_size=19), max_size=3).map(
        lambda rows: to_csv(np.array(rows, object)) if rows else ""
    ),
    JSONS.map(json.dumps),
    st.builds(
        lambda shape, content, params: json.dumps({shape: content, "params": params}),
        st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]),
        JSONS | st.lists(st.lists(st.floats(), min_size=18, max_size=18), max_size=3),
        JSONS,
    ),
)
MEDIA_TYPES = st.sampled_from([CSV, JSON, "image/png", "image/jpeg", "text/csv;charset=utf-8", ""])
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
HEADERS = st.fixed_dictionaries(
    {"content-type": MEDIA_TYPES | HEADER},
    optional={
        "accept": HEADER | st.just("*/*"),
        "content-encoding": HEADER,
        "x-request-id": HEADER,
        "x-other": HEADER,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, headers=HEADERS)
def test_whatever_comes_is_answered_or_refused(
    client: TestClient, body: str | bytes, headers: dict[str, str]
) -> None:
    content = body.encode("utf-8", errors="replace") if isinstance(body, str) else body
    response = client.post("/invocations", content=content, headers=headers)
    assert response.status_code in {200, 400, 406, 413, 415, 422}, response.text
    assert "Traceback" not in response.text
    if response.status_code != 200:
        assert set(response.json()) == {"error"}
        assert "\n" not in response.json()["error"]


def test_the_description_is_true_of_what_is_said(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    taken = {
        "fire": {"instances": [list(map(float, PUBLISHED.split(",")))]},
        "waste": {"instances": [{"image": base64.b64encode(picture(0)).decode()}]},
        "gcode": {"inputs": {"spindle": [1.0] * 6, "x_load": [None] * 6}},
    }[client.get("/version").json()["workload"]]
    operation = description["paths"]["/invocations"]["post"]
    asked = operation["requestBody"]["content"][JSON]["schema"]
    jsonschema.Draft202012Validator(asked).validate(taken)
    assert not jsonschema.Draft202012Validator(asked).is_valid({**taken, "rows": []})
    said = operation["responses"]["200"]["content"][JSON]["schema"]
    response = post(client, taken, JSON)
    jsonschema.Draft202012Validator(said).validate(response.json())
    assert not jsonschema.Draft202012Validator(said).is_valid({"predictions": [{}]})
