"""The scoring app for pictures and for machine logs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ray_jobs.models.gcode_bundle import load_gcode_bundle
from ray_jobs.models.image_bundle import load_image_bundle
from ray_jobs.serving.model import load_model
from tests.unit.serving_models import (
    CLASSES,
    CSV,
    FRAME,
    JSON,
    PUBLISHED,
    gcode_folder,
    picture,
    predictions,
    ready,
    refusal,
    to_csv,
    waste_folder,
)  # fmt: skip


@pytest.fixture(scope="module")
def waste() -> Iterator[TestClient]:
    with ready(lambda: load_model(waste_folder())) as client:
        yield client


@pytest.fixture(scope="module")
def gcode() -> Iterator[TestClient]:
    with ready(lambda: load_model(gcode_folder())) as client:
        yield client


# waste


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_gets_its_likeliest_classes(waste: TestClient, kind: str) -> None:
    content = picture(1, kind)
    (said,) = predictions(waste, content, f"image/{kind.lower()}")
    p = load_image_bundle(waste_folder()).predict_proba([content])[0]
    order = np.argsort(-p)[:5]
    assert said["top"] == [
        {"class": CLASSES[number], "probability": pytest.approx(p[number])} for number in order
    ]
    assert (said["class"], said["probability"]) == tuple(said["top"][0].values())


def test_several_pictures_at_once(waste: TestClient) -> None:
    contents = [picture(seed) for seed in range(3)]
    texts = [base64.b64encode(content).decode() for content in contents]
    p = load_image_bundle(waste_folder()).predict_proba(contents)
    for body in (
        {"instances": [{"image": text} for text in texts]},
        {"instances": texts},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        {"inputs": {"image": texts}},
    ):
        said = predictions(waste, body, JSON)
        assert [one["class"] for one in said] == [CLASSES[number] for number in p.argmax(axis=1)]
        assert [one["probability"] for one in said] == pytest.approx(p.max(axis=1), abs=1e-6)


@pytest.mark.parametrize(
    ("body", "media_type", "message"),
    [
        (b"", "image/png", "row 1, column 'image': empty: 0 bytes"),
        (b"hello", "image/png", "row 1, column 'image': not-a-picture: none of JPEG, "),
        (picture(0, "PNG")[:-40], "image/png", "row 1, column 'image': truncated: "),
        ({"instances": ["%"]}, JSON, "row 1, column 'image' is not base64: "),
        ({"instances": ["é"]}, JSON, "row 1, column 'image' is not base64: "),
        ({"instances": [{"image": 5}]}, JSON, "row 1, column 'image' must be the base64 of a"),
        ({"instances": [{"picture": ""}]}, JSON, "row 1, column 'image' is missing"),
        ({"instances": ["aGk="], "params": {"a": 1}}, JSON, "this model takes no params"),
    ],
)
def test_a_picture_that_is_none(
    waste: TestClient, body: Any, media_type: str, message: str
) -> None:
    assert refusal(waste, body, media_type).startswith(message)


def test_too_many_pictures(waste: TestClient) -> None:
    body = {"instances": ["aGk="] * 17}
    assert refusal(waste, body, JSON, status=413) == "17 pictures; send at most 16 at once"
    assert refusal(waste, PUBLISHED, CSV, status=415).startswith(
        "content-type must be one of image"
    )


# gcode


def test_the_lines_of_a_run(gcode: TestClient) -> None:
    rows = np.random.default_rng(0).normal(2, 1, (9, 3))
    rows[4, 1] = np.nan
    lines = load_gcode_bundle(gcode_folder()).decode(rows)
    wanted = [FRAME.commands[number] for number in lines.command]
    blank = to_csv(rows, FRAME.features).replace("nan", "")
    unread = to_csv(np.c_[rows, rows], (*FRAME.features, "a", "b", "c"))
    listed = [[None if math.isnan(cell) else cell for cell in row] for row in rows.tolist()]
    for body, media_type in (
        (to_csv(rows), CSV),
        (blank, CSV),
        (unread, CSV),
        ({"inputs": listed}, JSON),
        ({"dataframe_split": {"columns": list(FRAME.features), "data": listed}}, JSON),
    ):
        said = predictions(gcode, body, media_type)
        assert [one["row"] for one in said] == [5, 6, 7, 8]
        assert [one["command"] for one in said] == wanted
        for number, name in enumerate(("F", "R", "X", "Y", "Z")):
            for one, is_set, value in zip(
                said, lines.param_type[:, number], lines.param_value[:, number], strict=True
            ):
                assert one[name] == (pytest.approx(value, abs=1e-5) if is_set else None)


def test_runs_decoded_together_do_not_see_each_other() -> None:
    scorer = load_model(gcode_folder()).scorer
    runs = [
        scorer.parse(to_csv(np.random.default_rng(seed).normal(2, 1, (5 + seed, 3))).encode(), CSV)
        for seed in (1, 2, 3)
    ]
    together = scorer.score(runs)
    for run, lines in zip(runs, together, strict=True):
        (alone,) = scorer.score([run])
        assert lines.command.tolist() == alone.command.tolist()
        assert lines.param_value == pytest.approx(alone.param_value, abs=1e-5)


def test_a_column_that_is_absent_was_not_measured(gcode: TestClient) -> None:
    rows = np.random.default_rng(1).normal(2, 1, (6, 3))
    rows[:, 1] = np.nan
    (number,) = load_gcode_bundle(gcode_folder()).decode(rows).command
    records = [{"spindle": row[0], "y_load": row[2], "said": "G1 X2"} for row in rows.tolist()]
    text = "said,y_load,spindle\n" + "\n".join(
        f"G1 X2,{row[2]!r},{row[0]!r}" for row in rows.tolist()
    )
    for body, media_type in (({"instances": records}, JSON), (text, CSV)):
        (said,) = predictions(gcode, body, media_type)
        assert said["command"] == FRAME.commands[number]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1,2,3\n" * 5, "a window has 6 rows, but there are 5; give at least 6 rows of one run"),
        ("1,2,3\n" * 5 + "1,2,inf", "row 6, column 'y_load': inf is not a finite number"),
        ("1,2,3\n" * 5 + "1,2", "row 6 has 2 columns where 3 are needed: column 'y_load' is"),
        ("a,b\n1,2", "no column is one of the model's; it takes 'spindle', ..."),
    ],
)
def test_a_run_that_cannot_be_decoded(gcode: TestClient, body: str, message: str) -> None:
    assert refusal(gcode, body).startswith(message)
