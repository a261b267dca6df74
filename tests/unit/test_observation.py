"""What is watched of requests and answers, for each workload."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from serving_models import (
    CLASSES,
    CSV,
    FRAME,
    JSON,
    PUBLISHED,
    fire_folder,
    gcode_folder,
    picture,
    waste_folder,
)

from ray_jobs.data.features import FEATURES
from ray_jobs.deployments.sagemaker.capture import outputs_of
from ray_jobs.monitoring.observation import Observation
from ray_jobs.serving.model import load_model
from ray_jobs.serving.scorer import Scorer


def observed(scorer: Scorer, body: bytes, media_type: str) -> tuple[Observation, list[dict]]:
    """What is watched, and what was predicted."""
    inputs = scorer.parse(body, media_type)
    (answer,) = scorer.score([inputs])
    observation = scorer.observe(inputs, answer)
    json.dumps(vars(observation), allow_nan=False)  # plain numbers and texts
    assert scorer.observe(inputs, None) == Observation(observation.features, {})
    predictions = json.loads(scorer.render(answer, JSON, ""))["predictions"]
    # What SageMaker captures is the answer alone.
    said = {**observation.outputs, **observation.details}
    assert outputs_of(predictions) == {name: list(values) for name, values in said.items()}
    return observation, predictions


def test_fire() -> None:
    rows = f"{PUBLISHED}\n{PUBLISHED.replace('450.0', '900.0')}".encode()
    observation, predictions = observed(load_model(fire_folder()).scorer, rows, CSV)
    assert tuple(observation.features) == FEATURES
    assert observation.features["gas_val"] == [450.0, 900.0]
    assert observation.outputs == {"probability": [one["probability"] for one in predictions]}


def test_gcode() -> None:
    data = [[1.5, None, 3.0]] + [[1.0, 2.0, 3.0]] * 6
    body = json.dumps({"dataframe_split": {"columns": FRAME.features, "data": data}}).encode()
    observation, predictions = observed(load_model(gcode_folder()).scorer, body, JSON)
    assert observation.features["spindle"] == [1.5] + [1.0] * 6
    assert observation.features["x_load"] == [None] + [2.0] * 6
    assert observation.outputs["command"] == [one["command"] for one in predictions]
    letters = [
        "".join(name for name in "FRXYZ" if one[name] is not None) or "none" for one in predictions
    ]
    assert observation.outputs["parameters"] == letters
    assert len(letters) == 2
    assert {name: list(values) for name, values in observation.details.items()} == {
        name: [one[name] for one in predictions] for name in "FRXYZ"
    }


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_waste() -> None:
    scorer = load_model(waste_folder()).scorer
    red = png(np.broadcast_to([255, 0, 0], (50, 70, 3)))
    observation, (prediction,) = observed(scorer, red, "image/png")
    assert (observation.features["width"], observation.features["height"]) == ([70.0], [50.0])
    for name, value in {"red": 1, "green": 0, "blue": 0, "brightness": 0.299}.items():
        assert observation.features[name] == [pytest.approx(value, abs=1e-3)], name
    assert observation.features["contrast"] == [pytest.approx(0, abs=1e-3)]
    assert observation.outputs["label"] == [prediction["class"]]
    assert observation.outputs["label"][0] in CLASSES
    assert observation.outputs["confidence"] == [prediction["probability"]]

    striped = np.zeros((32, 32, 3))
    striped[:, ::2] = 255
    noise, _ = observed(scorer, png(striped), "image/png")
    plain, _ = observed(scorer, picture(1, size=(33, 32)), "image/png")
    assert noise.features["sharpness"][0] > plain.features["sharpness"][0] > 0.01
    assert observation.features["sharpness"][0] < 1e-3
