"""gcode: sensor rows of one run in; the line in force at each row that ends a window out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.gcode_metrics import GcodeLines
from ray_jobs.models.gcode_bundle import GcodeBundle, load_gcode_bundle
from ray_jobs.monitoring.observation import Observation
from ray_jobs.ray_runtime import available_cpus
from ray_jobs.sections import ResourceSpec
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.scorer import CSV, JSON, Limits
from ray_jobs.serving.table_schemas import csv_schema, json_schema
from ray_jobs.serving.tables import Columns, numbers_of, read_csv, read_json


@dataclass(frozen=True)
class RunRows:
    """Rows of one run in time order, [R, F]; NaN where not measured."""

    x: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)


class GcodeScorer:
    """Scores with the decoder of a bundle."""

    limits = Limits(max_body_bytes=16 << 20, max_rows=10_000, max_batch_rows=1024, max_queue=128)
    media_types = (CSV, JSON)
    answer_types = (JSON,)
    parses_slowly = False

    def __init__(self, bundle: GcodeBundle):
        self._bundle = bundle
        self._columns = Columns(bundle.frame.features, may_be_missing=True)
        self.num_threads = available_cpus(ResourceSpec())

    def parse(self, body: bytes, media_type: str) -> RunRows:
        if media_type == CSV:
            x = read_csv(body, self._columns)
        else:
            table = read_json(body, self._columns)
            if table.params:
                raise BadInput("this model takes no params")
            x = numbers_of(table, self._columns)
        try:
            self._bundle.check_length(x)
        except ValueError as error:
            raise BadInput(str(error)) from None
        return RunRows(x)

    def score(self, batch: Sequence[RunRows]) -> list[GcodeLines]:
        return self._bundle.decode_runs([rows.x for rows in batch])

    def render(self, answer: GcodeLines, media_type: str, model_version: str) -> bytes:
        frame = self._bundle.frame
        predictions = [
            {
                "row": row,  # from 0, as the registered model says it
                "command": frame.commands[command],
                **{
                    name: value if is_set else None
                    for name, is_set, value in zip(PARAMETERS, types, values, strict=True)
                },
                "model_version": model_version,
            }
            for row, (command, types, values) in enumerate(
                zip(
                    answer.command.tolist(),
                    answer.param_type.tolist(),
                    answer.param_value.tolist(),
                    strict=True,
                ),
                start=frame.window - 1,
            )
        ]
        return json.dumps({"predictions": predictions}).encode()

    def example(self) -> RunRows:
        frame = self._bundle.frame
        return RunRows(np.full((frame.window, len(frame.features)), np.nan))

    def observe(self, inputs: RunRows, answer: GcodeLines | None) -> Observation:
        cells = inputs.x.astype(object)
        cells[np.isnan(inputs.x)] = None
        features = dict(zip(self._columns.names, cells.T.tolist(), strict=True))
        if answer is None:
            return Observation(features, {})
        commands = [self._bundle.frame.commands[command] for command in answer.command.tolist()]
        letters = np.array(PARAMETERS, object)
        parameters = ["".join(letters[is_set]) or "none" for is_set in answer.param_type]
        values = answer.param_value.astype(object)
        values[~answer.param_type] = None
        return Observation(
            features,
            {"command": commands, "parameters": parameters},
            dict(zip(PARAMETERS, values.T.tolist(), strict=True)),
        )

    def request_content(self) -> dict[str, Any]:
        cell = {"type": ["number", "null"]}
        return {CSV: csv_schema(self._columns), JSON: json_schema(self._columns, cell, {})}

    def prediction_schema(self) -> dict[str, Any]:
        said = {
            "row": {"type": "integer"},
            "command": {"type": "string", "enum": list(self._bundle.frame.commands)},
            **{name: {"type": ["number", "null"]} for name in PARAMETERS},
            "model_version": {"type": "string"},
        }
        return {"type": "object", "properties": said, "required": list(said)}


def load(folder: Path) -> GcodeScorer:
    """The scorer of a bundle.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    return GcodeScorer(load_gcode_bundle(folder))
