"""The code of a registered image model (MLflow's models-from-code): loads a bundle and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

_AT_ONCE = 64  # pictures decoded and scored together


class ImageClassifierModel(PythonModel):
    """Bytes of picture files in column `image` in; the likeliest class and its probability out."""

    def load_context(self, context: Any) -> None:
        from ray_jobs.models.image_bundle import load_image_bundle

        self._bundle = load_image_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        contents = model_input["image"].tolist()
        classes, probability = [], []
        for start in range(0, len(contents), _AT_ONCE):
            p = self._bundle.predict_proba(contents[start : start + _AT_ONCE])
            classes += [self._bundle.classes[number] for number in p.argmax(axis=1)]
            probability += p.max(axis=1).tolist()
        return pd.DataFrame({"class": classes, "probability": probability})


set_model(ImageClassifierModel())
