"""The code of a registered decoder of G-code (MLflow's models-from-code): loads a bundle and
predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class GcodeModel(PythonModel):
    """Sensor rows of one run in time order in; the line in force out, for each row that ends a
    whole window: its index, the command, and each parameter's value, missing where not set.

    A column that is missing, or a cell without a number, was not measured.
    """

    def load_context(self, context: Any) -> None:
        from ray_jobs.models.gcode_bundle import load_gcode_bundle

        self._bundle = load_gcode_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        from ray_jobs.data.machine_logs.gcode import PARAMETERS

        frame = self._bundle.frame
        rows = model_input.reindex(columns=list(frame.features)).to_numpy(np.float64)
        lines = self._bundle.decode(rows)
        values = np.where(lines.param_type, lines.param_value, np.nan)
        said = {
            "row": np.arange(frame.window - 1, len(rows)),
            "command": [frame.commands[number] for number in lines.command],
        }
        return pd.DataFrame({**said, **dict(zip(PARAMETERS, values.T, strict=True))})


set_model(GcodeModel())
