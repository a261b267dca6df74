"""waste: pictures in; the likeliest classes out."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.models.image_bundle import ImageBundle, load_image_bundle
from ray_jobs.monitoring.observation import Observation
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.sections import ResourceSpec
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.scorer import JSON, Limits
from ray_jobs.serving.table_schemas import json_schema
from ray_jobs.serving.tables import Columns, read_json

if TYPE_CHECKING:
    from torch import Tensor

_JPEG, _PNG = "image/jpeg", "image/png"
_COLUMNS = Columns(("image",))
_TOP = 5  # classes told
_MAX_PIXELS = 50_000_000
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue: ITU-R BT.601


@dataclass(frozen=True)
class Pictures:
    """Of a request."""

    x: Tensor  # the network's inputs, [N, 3, S, S]
    sizes: tuple[tuple[int, int], ...]  # width and height of each, px, as its file says

    def __len__(self) -> int:
        return len(self.x)


class WasteScorer:
    """Scores with the classifier of a bundle."""

    limits = Limits(max_body_bytes=25 << 20, max_rows=16, max_batch_rows=32, max_queue=64)
    media_types = (_JPEG, _PNG, JSON)
    answer_types = (JSON,)
    parses_slowly = True  # a picture takes milliseconds to decode

    def __init__(self, bundle: ImageBundle):
        self._bundle = bundle
        self.num_threads = available_cpus(ResourceSpec())

    def parse(self, body: bytes, media_type: str) -> Pictures:
        import torch

        contents = _from_json(body) if media_type == JSON else [body]
        if len(contents) > self.limits.max_rows:  # before the work of decoding them
            raise BadInput(
                f"{len(contents)} pictures; send at most {self.limits.max_rows} at once", status=413
            )
        pictures = [self._prepare(content, row) for row, content in enumerate(contents, start=1)]
        return Pictures(torch.stack(pictures), tuple(map(_size, contents)))

    def _prepare(self, content: bytes, row: int) -> Tensor:
        from ray_jobs.data.images.decode import BadPicture

        try:
            return self._bundle.prepare(content, max_pixels=_MAX_PIXELS)
        except BadPicture as error:
            raise BadInput(f"row {row}, column 'image': {error}") from None

    def score(self, batch: Sequence[Pictures]) -> list[NDArray[np.float64]]:
        import torch

        p = self._bundle.predict_prepared(torch.cat([pictures.x for pictures in batch]))
        return np.split(p, np.cumsum([len(pictures) for pictures in batch])[:-1])

    def render(self, answer: NDArray[np.float64], media_type: str, model_version: str) -> bytes:
        classes = self._bundle.classes
        predictions = []
        for p in answer:
            top = [
                {"class": classes[number], "probability": float(p[number])}
                for number in np.argsort(-p, kind="stable")[:_TOP]
            ]
            predictions.append({**top[0], "top": top, "model_version": model_version})
        return json.dumps({"predictions": predictions}).encode()

    def example(self) -> Pictures:
        import torch

        size = self._bundle.image.image_size
        return Pictures(torch.zeros(1, 3, size, size), ((size, size),))

    def observe(self, inputs: Pictures, answer: NDArray[np.float64] | None) -> Observation:
        width, height = zip(*inputs.sizes, strict=True)
        features = {
            "width": list(map(float, width)),
            "height": list(map(float, height)),
            **{name: values.tolist() for name, values in self._looks(inputs.x).items()},
        }
        if answer is None:
            return Observation(features, {})
        labels = [self._bundle.classes[number] for number in answer.argmax(axis=1)]
        confidence = answer.max(axis=1).tolist()
        return Observation(features, {"label": labels, "confidence": confidence})

    def _looks(self, x: Tensor) -> dict[str, NDArray[np.float64]]:
        """Of what the network sees of each picture, in 0..1. Each [N]."""
        image = self._bundle.image
        std, mean = (np.array(values)[:, None, None] for values in (image.std, image.mean))
        pixels = x.numpy() * std + mean
        gray = np.tensordot(pixels, _LUMA, axes=(1, 0))  # [N, S, S]
        red, green, blue = pixels.mean(axis=(2, 3)).T
        steps = [np.abs(np.diff(gray, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        return {
            "brightness": gray.mean(axis=(1, 2)),
            "contrast": gray.std(axis=(1, 2)),
            "sharpness": (steps[0] + steps[1]) / 2,  # between neighbouring pixels
            "red": red,
            "green": green,
            "blue": blue,
        }

    def request_content(self) -> dict[str, Any]:
        picture = {"type": "string", "format": "binary"}
        cell = {"type": "string", "contentEncoding": "base64"}
        return {_JPEG: picture, _PNG: picture, JSON: json_schema(_COLUMNS, cell, {})}

    def prediction_schema(self) -> dict[str, Any]:
        likely = {
            "class": {"type": "string", "enum": list(self._bundle.classes)},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        }
        one = {"type": "object", "properties": likely, "required": list(likely)}
        whole = {**likely, "top": {"type": "array", "items": one}}
        return {
            "type": "object",
            "properties": {**whole, "model_version": {"type": "string"}},
            "required": [*whole, "model_version"],
        }


def load(folder: Path) -> WasteScorer:
    """The scorer of a bundle.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    return WasteScorer(load_image_bundle(folder))


def _size(content: bytes) -> tuple[int, int]:
    """Width and height of a picture that has been decoded, from its header."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return picture.size


def _from_json(body: bytes) -> list[bytes]:
    table = read_json(body, _COLUMNS)
    if table.params:
        raise BadInput("this model takes no params")
    contents = []
    for row, (cell,) in enumerate(table.rows, start=1):
        if not isinstance(cell, str):
            raise BadInput(f"row {row}, column 'image' must be the base64 of a picture's file")
        try:
            contents.append(base64.b64decode(cell, validate=True))
        except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
            raise BadInput(f"row {row}, column 'image' is not base64: {error}") from None
    return contents
