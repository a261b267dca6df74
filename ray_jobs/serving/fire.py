"""fire: rows of features in; the probability of a fire and the decision out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.bundle import Bundle, Predictor, load_bundle
from ray_jobs.data.dataset import Rows
from ray_jobs.models.sklearn_member import SklearnMember
from ray_jobs.monitoring.observation import Observation
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.scorer import CSV, JSON, Limits
from ray_jobs.serving.table_schemas import csv_schema, json_schema
from ray_jobs.serving.tables import Columns, numbers_of, read_csv, read_json
from ray_jobs.serving.trees import FlatBoosting, FlatForest


@dataclass(frozen=True)
class Readings:
    """Feature rows of a request, [N, F]."""

    x: NDArray[np.float32]
    as_history: bool = False  # they are consecutive readings of one place, oldest first

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Verdicts:
    """Of each row, [N]."""

    probability: NDArray[np.float64]
    decision: NDArray[np.bool_]


class FireScorer:
    """Scores with the ensemble of a bundle."""

    limits = Limits(max_body_bytes=4 << 20, max_rows=10_000, max_batch_rows=512, max_queue=512)
    media_types = (CSV, JSON)
    answer_types = (JSON, CSV)
    num_threads = 1  # what a few rows need is too little to share
    parses_slowly = False

    def __init__(self, bundle: Bundle):
        members = {name: _quick(member) for name, member in bundle.members.items()}
        self._bundle = Bundle(bundle.features, bundle.ensemble, members)
        self._columns = Columns(bundle.features)

    def parse(self, body: bytes, media_type: str) -> Readings:
        if media_type == CSV:
            return Readings(read_csv(body, self._columns).astype(np.float32))
        table = read_json(body, self._columns)
        as_history = _as_history(table.params)
        return Readings(numbers_of(table, self._columns).astype(np.float32), as_history)

    def score(self, batch: Sequence[Readings]) -> list[Verdicts]:
        x = np.concatenate([readings.x for readings in batch])
        group = _groups(batch)
        y = np.zeros(len(x), np.int8)  # unknown, and read by no member that predicts
        rows = Rows(x, y, group, np.arange(len(x)), self._bundle.features)
        probability = self._bundle.predict_proba(rows)
        decision = probability >= self._bundle.ensemble.threshold
        cuts = np.cumsum([len(readings) for readings in batch])[:-1]
        parts = zip(np.split(probability, cuts), np.split(decision, cuts), strict=True)
        return [Verdicts(*part) for part in parts]

    def render(self, answer: Verdicts, media_type: str, model_version: str) -> bytes:
        said = zip(answer.probability.tolist(), answer.decision.tolist(), strict=True)
        if media_type == CSV:
            return "".join(f"{p!r},{int(decision)}\n" for p, decision in said).encode()
        predictions = [
            {"probability": p, "decision": decision, "model_version": model_version}
            for p, decision in said
        ]
        return json.dumps({"predictions": predictions}).encode()

    def example(self) -> Readings:
        return Readings(np.zeros((1, len(self._columns.names)), np.float32))

    def observe(self, inputs: Readings, answer: Verdicts | None) -> Observation:
        features = dict(zip(self._columns.names, inputs.x.T.tolist(), strict=True))
        outputs = {} if answer is None else {"probability": answer.probability.tolist()}
        return Observation(features, outputs)

    def request_content(self) -> dict[str, Any]:
        params = {"as_history": {"type": "boolean", "default": False}}
        return {
            CSV: csv_schema(self._columns),
            JSON: json_schema(self._columns, {"type": "number"}, params),
        }

    def prediction_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "probability": {"type": "number", "minimum": 0, "maximum": 1},
                "decision": {"type": "boolean"},
                "model_version": {"type": "string"},
            },
            "required": ["probability", "decision", "model_version"],
        }


def load(folder: Path) -> FireScorer:
    """The scorer of a bundle.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    return FireScorer(load_bundle(folder))


def _quick(member: Predictor) -> Predictor:
    """The member, or what says the same sooner."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    classifier = member._classifier if isinstance(member, SklearnMember) else None
    if isinstance(classifier, RandomForestClassifier):
        return FlatForest(classifier)
    if isinstance(classifier, HistGradientBoostingClassifier):
        return FlatBoosting(classifier)
    return member


def _groups(batch: Sequence[Readings]) -> NDArray[np.int64]:
    """A number for each history, and for each row that stands alone. Shape [N]."""
    is_first = [
        np.arange(len(readings)) == 0 if readings.as_history else np.ones(len(readings), bool)
        for readings in batch
    ]
    return np.cumsum(np.concatenate(is_first)) - 1


def _as_history(params: Mapping[str, Any]) -> bool:
    unknown = sorted(params.keys() - {"as_history"})
    value = params.get("as_history", False)
    if unknown or not isinstance(value, bool):
        raise BadInput('params may hold "as_history": true or false, and nothing else')
    return value
