"""The fire pipeline: prepare -> train each member -> ensemble -> evaluate -> register."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from components.ensemble import ensemble
from components.evaluate import evaluate
from components.prepare import prepare
from components.register import register
from components.train_member import train_member


def pipeline(parallelism: int | None = None) -> Any:
    """The pipeline, with parameters `spec` (YAML), `run_id` and `members` (names).

    Args:
        parallelism: members that train at the same time; default: as many as the backend allows.
    """

    @dsl.pipeline(
        name="fire", description="An ensemble that finds fires in thermal and gas readings."
    )
    def fire(spec: str, run_id: str, members: list) -> None:
        prepared = prepare(spec=spec, run_id=run_id)
        with dsl.ParallelFor(items=members, parallelism=parallelism) as name:
            trained = train_member(run=prepared.outputs["Output"], name=name)
        combined = ensemble(
            run=prepared.outputs["Output"], statuses=dsl.Collected(trained.outputs["Output"])
        )
        evaluated = evaluate(run=combined.outputs["Output"])
        register(run=evaluated.outputs["Output"])

    return fire
