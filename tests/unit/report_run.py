"""A run with everything in it, for the tests of its report: one member failed, one degenerate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from ray_jobs.metrics import bootstrap_intervals
from ray_jobs.predictions import Predictions
from ray_jobs.result import (
    Candidate,
    ColumnLeak,
    DataSummary,
    DuplicateReport,
    EnsembleResult,
    JobResult,
    LeakageReport,
    MemberResult,
    MetricValue,
    Objective,
    RegisteredModel,
    SplitSummary,
)

STARTED = datetime(2025, 3, 4, 9, 12, 3, tzinfo=UTC)
MEMBERS = ("random_forest", "logistic_regression", "transformer")
THRESHOLD = 0.4


def make_predictions(num_rows: int = 600, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    y = (rng.random(num_rows) < 0.3).astype(np.int8)
    members = {
        name: 1 / (1 + np.exp(-(sharpness * (y - 0.6) + rng.normal(size=num_rows))))
        for name, sharpness in zip(MEMBERS, (2.5, 1.5, 0.1), strict=True)
    }
    ensemble = (2 * members["random_forest"] + members["logistic_regression"]) / 3
    ids = np.arange(num_rows)
    return Predictions(ids, y, np.sort(rng.integers(0, 40, num_rows)), ensemble, members)


def score(part: Predictions, p: np.ndarray) -> dict[str, MetricValue]:
    return bootstrap_intervals(part.y, p, THRESHOLD, groups=part.group, num_resamples=50)


def make_result(predictions: dict[str, Predictions]) -> JobResult:
    """A run of four members: one failed, one degenerate."""
    members = [
        MemberResult(
            name=name,
            family=name,
            status="SUCCEEDED",
            metrics={split: score(part, part.members[name]) for split, part in predictions.items()},
            seconds=12.3,
            degenerate=name == "transformer",
            best_epoch=4 if name == "transformer" else None,
            num_epochs=12 if name == "transformer" else None,
        )
        for name in MEMBERS
    ]
    members.append(
        MemberResult(name="lstm", family="lstm", status="FAILED", reason="the loss became NaN")
    )
    splits = {
        split: SplitSummary(
            num_rows=len(part), num_groups=40, num_positive=int(part.y.sum()), digest=split * 20
        )
        for split, part in predictions.items()
    }
    return JobResult(
        run_id="20250304-091203-7c1e",
        workload="fire",
        status="SUCCEEDED",
        objective=Objective(metric="f1", mode="max"),
        seed=0,
        metrics={split: score(part, part.ensemble) for split, part in predictions.items()},
        members=members,
        ensemble=EnsembleResult(
            strategy="greedy",
            weights={"random_forest": 0.667, "logistic_regression": 0.333},
            calibration="sigmoid",
            threshold=THRESHOLD,
            candidates=[
                Candidate(
                    strategy=strategy,
                    objective=0.7 + index / 100,
                    objective_stderr=0.015,
                    log_loss=0.4,
                    log_loss_stderr=0.01,
                    chosen=strategy == "greedy",
                )
                for index, strategy in enumerate(("single", "equal", "greedy"))
            ],
        ),
        data=DataSummary(
            source="simulator:episodes",
            path="datasets/fire-1",
            digest="ab" * 32,
            features=["t_mean", "gas_val"],
            label="fire",
            splits=splits,
            grouped_by="column 'episode'",
            num_dropped=12,
            leakage=LeakageReport(
                duplicates=DuplicateReport(merged_groups=[["session 2", "session 4"]]),
                columns=[ColumnLeak(column="co2", auc=0.912, refused=False, evidence="a tree")],
                excluded_columns={"utc": "runs with time"},
            ),
            warnings=["the rows are one recording"],
        ),
        model=RegisteredModel(name="fire", version=3, uri="models:/fire/3", mlflow_run_id="a"),
        versions={"python": "3.11.9", "code": "5f2c9ab"},
        seconds={"prepare": 19.2, "train": 71.5},
        num_skipped_batches=3,
        warnings=["the rows are one recording", "lstm failed: the loss became NaN", "disk is slow"],
        started_at=STARTED,
        ended_at=STARTED + timedelta(seconds=91),
    )


def floats_in(value: Any) -> list[float]:
    """Every float of nested mappings and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in floats_in(inner)]
    return [value] if isinstance(value, float) else []
