"""The waste pipeline: scan -> preflight -> train -> evaluate -> register."""

from typing import Any

from kfp import dsl

from components.evaluate_classes import evaluate_classes
from components.preflight import preflight
from components.register import register
from components.scan import scan
from components.train import train


def pipeline() -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`."""

    @dsl.pipeline(name="waste", description="A classifier of pictures of waste.")
    def waste(spec: str, run_id: str) -> None:
        scanned = scan(spec=spec, run_id=run_id)
        checked = preflight(run=scanned.outputs["Output"])
        trained = train(run=checked.outputs["Output"])
        evaluated = evaluate_classes(run=trained.outputs["Output"])
        register(run=evaluated.outputs["Output"])

    return waste
