"""A version's own example: what is kept with a model, and how an endpoint's answer is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_models import CSV, JSON, fire_folder, gcode_folder, new_folder, waste_folder

from ray_jobs.errors import JobFailed
from ray_jobs.serving.example import EXAMPLE, Example, read_example
from ray_jobs.serving.model import load_model

FOLDERS = {"fire": fire_folder, "waste": waste_folder, "gcode": gcode_folder}
FIRE = Example(CSV, b"1", [{"probability": 0.25, "decision": True}])
TOP = [{"class": "glass", "probability": 0.5}, {"class": "metal", "probability": 0.49996}]
WASTE = Example("image/png", b"", [{**TOP[0], "top": TOP}])
GCODE = Example(JSON, b"{}", [{"row": 5, "command": "G1", "F": None, "X": 2.0}])


def answered(*predictions: dict[str, Any]) -> bytes:
    return json.dumps({"predictions": predictions}).encode()


@pytest.mark.parametrize("workload", FOLDERS)
def test_a_model_answers_its_own_example(workload: str) -> None:
    folder = FOLDERS[workload]()
    example = read_example(folder)
    scorer = load_model(folder).scorer
    (answer,) = scorer.score([scorer.parse(example.body, example.media_type)])
    said = scorer.render(answer, JSON, "12")
    assert b'"model_version": "12"' in said
    assert "model_version" not in example.answer[0]
    assert example.fault(said) is None
    assert Example(**vars(example)).fault(b'{"predictions": []}') == (
        f"0 predictions, where {len(example.answer)} were recorded"
    )


@pytest.mark.parametrize(
    ("example", "prediction", "fault"),
    [
        (FIRE, {"probability": 0.25 + 9e-5, "decision": True, "model_version": "3"}, None),
        (FIRE, {"probability": 0.25, "decision": False}, None),
        (FIRE, {"probability": 0.2502, "decision": True}, "probability: it is 0.2502, not 0.25"),
        (FIRE, {"probability": "0.25", "decision": True}, "probability: it is '0.25', not 0.25"),
        (FIRE, {"probability": 0.25, "decision": 1}, "decision: it is 1, not True"),
        (FIRE, {"decision": True}, "probability is missing"),
        (GCODE, {"row": 5, "command": "G1", "F": None, "X": 2.0001}, None),
        (GCODE, {"row": 5, "command": "G2", "F": None, "X": 2.0}, "command: it is 'G2', not 'G1'"),
        (GCODE, {"row": 5, "command": "G1", "F": 0.0, "X": 2.0}, "F: it is 0.0, not None"),
        (GCODE, {"row": 5, "command": "G1", "F": None, "X": 2.001}, "X: it is 2.001, not 2.0"),
    ],
)
def test_an_answer_is_compared(
    example: Example, prediction: dict[str, Any], fault: str | None
) -> None:
    said = fault and f"prediction 1: {fault}"
    assert example.fault(answered(prediction)) == said


def test_classes_at_a_tie_may_change_places() -> None:
    first, second = (dict(one) for one in TOP)
    swapped = [
        {**second, "probability": 0.50001},
        {**first, "probability": 0.49998},
    ]
    assert WASTE.fault(answered({**swapped[0], "top": swapped})) is None
    other = [first, {"class": "paper", "probability": 0.49996}]
    assert WASTE.fault(answered({**first, "top": other})) is None
    worse = [{**second, "probability": 0.6}, {**first, "probability": 0.4}]
    assert WASTE.fault(answered({**worse[0], "top": worse})) == (
        "prediction 1: probability: it is 0.6, not 0.5"
    )
    low = [first, {"class": "paper", "probability": 0.3}]
    assert WASTE.fault(answered({**first, "top": low})) == (
        "prediction 1: top: 'metal' has 0.3, not 0.49996"
    )


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"[]", b'{"error": "x"}', b'{"predictions": 1}', b'{"predictions": [1]}',
     b"[" * 100_000, b"\xff"],
)  # fmt: skip
def test_what_is_no_answer(answer: bytes) -> None:
    fault = FIRE.fault(answer)
    assert fault is not None
    assert fault.startswith("the answer is no list of predictions in JSON (")
    assert "\n" not in fault


def without(bundle: Path) -> None:
    (bundle / EXAMPLE).unlink()


def of_no_json(bundle: Path) -> None:
    (bundle / EXAMPLE).write_bytes(b"{")


def of_no_base64(bundle: Path) -> None:
    (bundle / EXAMPLE).write_text('{"media_type": "text/csv", "body": "é", "answer": [{}]}')


def of_no_answer(bundle: Path) -> None:
    (bundle / EXAMPLE).write_text('{"media_type": "text/csv", "body": "", "answer": [1]}')


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "the model has no example.json to ask an endpoint for"),
        (of_no_json, "the model's example.json is malformed"),
        (of_no_base64, "the model's example.json is malformed"),
        (of_no_answer, r"the model's example.json is malformed \(no media_type and answer\)"),
    ],
)
def test_a_bundle_without_an_example(change: Callable[[Path], None], words: str) -> None:
    folder = new_folder()
    (folder / EXAMPLE).write_text(FIRE.to_json())
    assert read_example(folder) == FIRE
    change(folder)
    with pytest.raises(JobFailed, match=f"{words}.*train it again with this version"):
        read_example(folder)
