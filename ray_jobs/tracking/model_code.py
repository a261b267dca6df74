"""The code of a registered model (MLflow's models-from-code): loads a bundle and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class EnsembleModel(PythonModel):
    """Rows of features in; probability and decision out."""

    def load_context(self, context: Any) -> None:
        from ray_jobs.bundle import load_bundle

        self._bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        x = model_input[list(self._bundle.features)].to_numpy(np.float32)
        as_history = bool((params or {}).get("as_history", False))
        probability = self._bundle.score(x, as_history=as_history)
        decision = probability >= self._bundle.ensemble.threshold
        return pd.DataFrame({"probability": probability, "decision": decision})


set_model(EnsembleModel())
