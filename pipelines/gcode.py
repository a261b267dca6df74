"""The gcode pipeline: read logs -> preflight -> (sweep ->) train -> evaluate -> register."""

from typing import Any

from components.evaluate_gcode import evaluate_gcode
from components.read_logs import read_logs
from pipelines.network import network_pipeline
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.workloads.gcode import GcodeSpec


def pipeline(
    job: GcodeSpec | None = None,
    *,
    promote: bool = False,
    deploy: str | None = None,
    kubeflow: KubeflowSpec | None = None,
) -> Any:
    """See `network_pipeline`."""
    description = "A decoder of the G-code that a machine executes."
    return network_pipeline(
        "gcode",
        description,
        prepare=read_logs,
        evaluate=evaluate_gcode,
        job=job,
        promote=promote,
        deploy=deploy,
        kubeflow=kubeflow,
    )
