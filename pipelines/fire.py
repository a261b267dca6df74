"""The fire pipeline: prepare -> train each member -> ensemble -> evaluate -> register."""

from typing import Any

from kfp import dsl

from components.ensemble import ensemble
from components.evaluate import evaluate
from components.prepare import prepare
from components.register import register
from components.train_member import train_member


def pipeline(parallelism: int | None = None) -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`.

    Args:
        parallelism: members that train at the same time; default: as many as the backend allows.
    """

    @dsl.pipeline(name="fire", description="An ensemble that finds fires in sensor readings.")
    def fire(spec: str, run_id: str) -> None:
        prepared = prepare(spec=spec, run_id=run_id)
        # Within a loop, kfp.local (2.17) puts the item in place of any other step's output: so
        # an item is the member's whole URI, and the loop needs nothing else.
        with dsl.ParallelFor(items=prepared.outputs["Output"], parallelism=parallelism) as member:
            trained = train_member(member=member)
        combined = ensemble(
            run=prepared.outputs["run"], statuses=dsl.Collected(trained.outputs["Output"])
        )
        evaluated = evaluate(run=combined.outputs["Output"])
        register(run=evaluated.outputs["Output"])

    return fire
