"""A version's own example: a request of its test split and the answer that its model gave to it,
recorded when it was registered. Whoever deploys it asks for that answer."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.errors import JobFailed
from ray_jobs.serving.scorer import JSON, Scorer

EXAMPLE = "example.json"
_TOLERANCE = 1e-4  # absolute or relative: another machine sums in another order
_VERSION = "model_version"  # of an answer: not known when the example is recorded

Prediction = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """A request, and how it was answered."""

    media_type: str
    body: bytes
    answer: list[dict[str, Any]]  # its `predictions`, without the model's version

    def to_json(self) -> str:
        return json.dumps(
            {
                "media_type": self.media_type,
                "body": base64.b64encode(self.body).decode(),
                "answer": self.answer,
            }
        )

    def fault(self, answer: bytes) -> str | None:
        """How an endpoint's answer in JSON differs from the recorded one, in a line; None: not."""
        try:
            given = _predictions(answer)
        except ValueError as error:
            return f"the answer is no list of predictions in JSON ({error})"
        if len(given) != len(self.answer):
            return f"{len(given)} predictions, where {len(self.answer)} were recorded"
        for number, (found, recorded) in enumerate(zip(given, self.answer, strict=True), start=1):
            fault = _difference(found, recorded)
            if fault:
                return f"prediction {number}: {fault}"
        return None


def record_example(scorer: Scorer[Any, Any], media_type: str, body: bytes) -> Example:
    """A request with the model's answer."""
    (answer,) = scorer.score([scorer.parse(body, media_type)])
    return Example(media_type, body, _predictions(scorer.render(answer, JSON, "")))


def read_example(bundle: Path) -> Example:
    """The example of a bundle whose files are known to be whole.

    Raises:
        JobFailed: it has none, or none that this version reads.
    """
    try:
        raw = json.loads((bundle / EXAMPLE).read_bytes())
        body = base64.b64decode(raw["body"], validate=True)
        example = Example(raw["media_type"], body, raw["answer"])
    except FileNotFoundError:
        raise JobFailed(
            f"the model has no {EXAMPLE} to ask an endpoint for; train it again with this version"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from None
    is_sound = (
        isinstance(example.media_type, str)
        and isinstance(example.answer, list)
        and all(isinstance(prediction, dict) for prediction in example.answer)
    )
    if not is_sound or not example.answer:
        raise _malformed("no media_type and answer")
    return example


def _malformed(cause: str) -> JobFailed:
    return JobFailed(
        f"the model's {EXAMPLE} is malformed ({cause}); train it again with this version"
    )


def _predictions(answer: bytes) -> list[dict[str, Any]]:
    """The predictions of an answer, without the model's version.

    Raises:
        ValueError: there are none.
    """
    try:
        document = json.loads(answer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    predictions = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(predictions, list) or not all(isinstance(one, dict) for one in predictions):
        raise ValueError("it has no predictions")
    return [{k: v for k, v in one.items() if k != _VERSION} for one in predictions]


def _difference(found: Prediction, recorded: Prediction) -> str | None:
    """How one prediction differs. A decision and a likeliest class follow from probabilities: at a
    tie of those either is right, so only the probabilities are compared."""
    for name, value in recorded.items():
        if name not in found:
            return f"{name} is missing"
        other = found[name]
        if name == "top":
            fault = _top_difference(other, value)
        elif isinstance(value, bool) or (name == "class" and "top" in recorded):
            fault = None if isinstance(other, type(value)) else f"it is {other!r}, not {value!r}"
        else:
            fault = None if _agree(other, value) else f"it is {other!r}, not {value!r}"
        if fault:
            return f"{name}: {fault}"
    return None


def _top_difference(found: Any, recorded: Any) -> str | None:
    """How the likeliest classes differ; of one that is not among those told it is known that it is
    no likelier than the last."""
    try:
        given = {one["class"]: float(one["probability"]) for one in found}
    except (TypeError, KeyError, ValueError):
        return f"it is {str(found)[:80]!r}, no list of classes"
    asked = {one["class"]: float(one["probability"]) for one in recorded}
    if len(given) != len(asked):
        return f"{len(given)} classes, where {len(asked)} were recorded"
    for name in {**asked, **given}:
        there = given.get(name, min(given.values()))
        before = asked.get(name, min(asked.values()))
        if not _agree(there, before):
            return f"{name!r} has {there:.6g}, not {before:.6g}"
    return None


def _agree(found: Any, recorded: Any) -> bool:
    numbers = (int, float)
    if type(found) in numbers and type(recorded) in numbers:
        return math.isclose(found, recorded, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return type(found) is type(recorded) and found == recorded
