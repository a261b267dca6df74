"""The waste pipeline: scan -> preflight -> (sweep ->) train -> evaluate -> register."""

from typing import Any

from kfp import dsl

from components.evaluate_classes import evaluate_classes
from components.preflight import preflight
from components.register import register
from components.scan import scan
from components.sweep import sweep
from components.train import train
from ray_jobs.workloads.waste import WasteSpec


def pipeline(job: WasteSpec | None = None) -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`.

    Args:
        job: the description of one job, where the pipeline is made for it: it says whether there is
            a sweep. Else there is none.
    """
    sweeps = job is not None and job.sweeps

    @dsl.pipeline(
        name="waste-sweep" if sweeps else "waste",
        description="A classifier of pictures of waste.",
    )
    def waste(spec: str, run_id: str) -> None:
        scanned = scan(spec=spec, run_id=run_id)
        checked = preflight(run=scanned.outputs["Output"])
        ready = sweep(run=checked.outputs["Output"]) if sweeps else checked
        trained = train(run=ready.outputs["Output"])
        evaluated = evaluate_classes(run=trained.outputs["Output"])
        register(run=evaluated.outputs["Output"])

    return waste
