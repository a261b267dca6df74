"""The gcode pipeline: read logs -> preflight -> (sweep ->) train -> evaluate -> register."""

from typing import Any

from kfp import dsl

from components.evaluate_gcode import evaluate_gcode
from components.preflight import preflight
from components.read_logs import read_logs
from components.register import register
from components.sweep import sweep
from components.train import train
from ray_jobs.workloads.gcode import GcodeSpec


def pipeline(job: GcodeSpec | None = None) -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`.

    Args:
        job: the description of one job, where the pipeline is made for it: it says whether there is
            a sweep. Else there is none.
    """
    sweeps = job is not None and job.sweeps

    @dsl.pipeline(
        name="gcode-sweep" if sweeps else "gcode",
        description="A decoder of the G-code that a machine executes.",
    )
    def gcode(spec: str, run_id: str) -> None:
        read = read_logs(spec=spec, run_id=run_id)
        checked = preflight(run=read.outputs["Output"])
        ready = sweep(run=checked.outputs["Output"]) if sweeps else checked
        trained = train(run=ready.outputs["Output"])
        evaluated = evaluate_gcode(run=trained.outputs["Output"])
        register(run=evaluated.outputs["Output"])

    return gcode
