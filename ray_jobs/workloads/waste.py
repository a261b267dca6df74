"""waste: what kind of waste is in a picture, by any image model of timm."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray_jobs.data.images.spec import ImageDataSpec
from ray_jobs.errors import DataError
from ray_jobs.models.image_classifier import ImageModelSpec
from ray_jobs.result import DataSummary, JobResult, MemberResult
from ray_jobs.storage import Storage
from ray_jobs.workloads.base import ModelForm, Request, draw
from ray_jobs.workloads.network import MODEL, TEST, VAL, NetworkSpec, NetworkWorkload

if TYPE_CHECKING:
    import torch

    from ray_jobs.class_predictions import ClassPredictions
    from ray_jobs.run import Run
    from ray_jobs.training.image_classification import ImageClassification


_JPEG = "image/jpeg"
_MEDIA_TYPES = {b"\xff\xd8\xff": _JPEG, b"\x89PNG\r\n\x1a\n": "image/png"}  # by first bytes
_MAX_EXAMPLE_BYTES, _EXAMPLE_PX = 200_000, 512


class WasteSpec(NetworkSpec):
    """The job description of a classifier of pictures."""

    UNIT = "pictures"
    METRICS: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "macro_f1": "max",
        "accuracy": "max",
        "balanced_accuracy": "max",
        "log_loss": "min",
    }

    data: ImageDataSpec = ImageDataSpec()
    model: ImageModelSpec

    def families(self) -> dict[str, str]:
        return {MODEL: "timm"}

    def summary(self) -> dict[str, str]:
        model, train = self.model, self.train
        weights = "pretrained" if model.pretrained else "from scratch"
        against = "" if train.imbalance == "none" else f", {train.imbalance} against imbalance"
        return {
            "model": f"{model.name}, {weights}, {model.image_size} px",
            "loss": f"{train.loss}{against}",
            **super().summary(),
        }


class Waste(NetworkWorkload):
    """Scan the pictures, check everything once, train, test once, register."""

    spec = WasteSpec
    preparation = "ray_jobs.data.images.prepare:prepare_images"
    num_reference = (500, 200)  # pictures take milliseconds to decode, and more to classify

    def task(
        self,
        spec: WasteSpec,
        data: DataSummary,
        *,
        storage: Storage,
        device: torch.device,
        num_cpus: int,
    ) -> ImageClassification:
        from ray_jobs.training.image_classification import ImageClassification

        return ImageClassification(spec, data, storage, device, num_cpus)

    def score(self, run: Run, members: list[MemberResult]) -> dict[str, Any]:
        from ray_jobs.class_predictions import ClassPredictions
        from ray_jobs.multiclass import bootstrap_intervals, class_scores
        from ray_jobs.reporting.class_report import write_class_artifacts

        predictions = {
            "val": ClassPredictions.read(run.storage, run.path(VAL)),
            "test": self.predict_test(run, ClassPredictions.read),
        }
        write_class_artifacts(
            run.storage,
            run.path("artifacts"),
            predictions,
            open_picture=_picture_opener(run),
        )
        metrics = {
            split: bootstrap_intervals(part.y, part.p, groups=part.group, seed=run.spec.seed)
            for split, part in predictions.items()
        }
        return {
            "metrics": metrics,
            "classes": {
                split: class_scores(part.y, part.p, part.classes)
                for split, part in predictions.items()
            },
            "members": [member.model_copy(update={"metrics": metrics}) for member in members],
        }

    def render(self, run: Run, result: JobResult) -> str:
        from ray_jobs.class_predictions import ClassPredictions
        from ray_jobs.members import read_history
        from ray_jobs.reporting.class_report import render_class_report

        paths = {"val": run.path(VAL), "test": run.path(TEST)}
        predictions: dict[str, ClassPredictions] = {
            split: ClassPredictions.read(run.storage, path)
            for split, path in paths.items()
            if run.storage.exists(path)
        }
        histories: Any = {MODEL: read_history(run, MODEL)}
        return render_class_report(
            result, predictions=predictions, histories=histories, spec_yaml=run.spec.to_yaml()
        )

    def write_model(self, run: Run, result: JobResult, folder: Path) -> ModelForm:
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        from ray_jobs.data.images.manifest import load_manifest, read_bytes

        assert result.data is not None, "only evaluated runs are logged"
        self.copy_model(run, result, folder)
        pictures = load_manifest(run.storage, result.data).rows("val").path[:1]
        return ModelForm(
            code=Path(__file__).parents[1] / "tracking" / "image_model_code.py",
            signature=ModelSignature(
                inputs=Schema([ColSpec("binary", "image")]),
                outputs=Schema([ColSpec("string", "class"), ColSpec("double", "probability")]),
            ),
            example=pd.DataFrame({"image": [read_bytes(path) for path in pictures]}),
            requirements=(
                "torch",
                "torchvision",
                "timm",
                "numpy",
                "safetensors",
                "pillow",
                "pyarrow",
                "pydantic",
                "pyyaml",
            ),
            tags={},
        )

    def requests(self, run: Run, data: DataSummary, split: str, num: int) -> Iterator[Request]:
        from ray_jobs.data.images.manifest import load_manifest, read_bytes

        rows = load_manifest(run.storage, data).rows(split)
        for number in draw(len(rows), num, run.spec.seed).tolist():
            path = rows.path[number]
            try:
                content = read_bytes(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read any more ({error})") from None
            yield Request(_media_type(content), content, int(rows.group[number]))

    def example(self, run: Run, data: DataSummary) -> Request:
        """As any workload's; a large picture is made small, as it is kept in the model's files."""
        from dataclasses import replace

        from ray_jobs.data.images.decode import decode

        request = super().example(run, data)
        if len(request.body) <= _MAX_EXAMPLE_BYTES and request.body.startswith(tuple(_MEDIA_TYPES)):
            return request
        picture, _ = decode(request.body, max_pixels=run.spec.data.max_pixels)
        picture.thumbnail((_EXAMPLE_PX, _EXAMPLE_PX))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        return replace(request, media_type=_JPEG, body=stream.getvalue())


def _media_type(content: bytes) -> str:
    """Of a picture's file; the scoring app takes other formats, too, under JPEG's name."""
    return next((kind for head, kind in _MEDIA_TYPES.items() if content.startswith(head)), _JPEG)


def _picture_opener(run: Run) -> Callable[[int], Any]:
    """From a row id to its picture, for those who look at mistakes."""
    from ray_jobs.data.images.decode import decode
    from ray_jobs.data.images.manifest import load_manifest, read_bytes
    from ray_jobs.prepare import read_data

    rows = load_manifest(run.storage, read_data(run)).rows("test")
    paths = dict(zip(rows.row_id.tolist(), rows.path, strict=True))
    max_pixels = run.spec.data.max_pixels
    return lambda row_id: decode(read_bytes(paths[row_id]), max_pixels=max_pixels)[0]


WORKLOAD = Waste()
