"""The page of mistakes: the pictures of test that the model was surest of and named wrongly."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.reporting.report import fill

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_SHOWN = 60
THUMBNAIL = 160  # longest side, in px


@dataclass(frozen=True)
class Mistake:
    row_id: int
    true: str
    named: str
    confidence: float
    second: str  # the class it found second likeliest
    second_confidence: float
    thumbnail: str | None  # data URI
    why_missing: str = ""


def render_mistakes(test: ClassPredictions, *, open_picture: Callable[[int], Image]) -> str:
    """One HTML page of the most confident mistakes, the most confident first."""
    named, confidence = test.p.argmax(axis=1), test.p.max(axis=1)
    wrong = np.flatnonzero(named != test.y)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_SHOWN]
    return fill(
        "mistakes.html.j2",
        ["report.css", "class_report.css"],
        mistakes=[_mistake(test, int(index), open_picture) for index in shown],
        num_wrong=len(wrong),
        num_rows=len(test),
    )


def _mistake(test: ClassPredictions, index: int, open_picture: Callable[[int], Image]) -> Mistake:
    p, row_id = test.p[index], int(test.row_id[index])
    first, second = (int(i) for i in np.argsort(-p, kind="stable")[:2])
    thumbnail, why = None, ""
    try:
        thumbnail = _thumbnail(open_picture(row_id))
    except (OSError, ValueError) as error:  # what Pillow raises for a file gone or damaged
        why = str(error) or type(error).__name__
    return Mistake(
        row_id=row_id,
        true=test.classes[test.y[index]],
        named=test.classes[first],
        confidence=float(p[first]),
        second=test.classes[second],
        second_confidence=float(p[second]),
        thumbnail=thumbnail,
        why_missing=why,
    )


def _thumbnail(picture: Image) -> str:
    """A picture as a JPEG data URI, its longest side at most `THUMBNAIL` px."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
