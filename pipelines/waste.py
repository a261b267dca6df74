"""The waste pipeline: scan -> preflight -> (sweep ->) train -> evaluate -> register."""

from typing import Any

from components.evaluate_classes import evaluate_classes
from components.scan import scan
from pipelines.network import network_pipeline
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.workloads.waste import WasteSpec


def pipeline(
    job: WasteSpec | None = None,
    *,
    promote: bool = False,
    deploy: str | None = None,
    kubeflow: KubeflowSpec | None = None,
) -> Any:
    """See `network_pipeline`."""
    description = "A classifier of pictures of waste."
    return network_pipeline(
        "waste",
        description,
        prepare=scan,
        evaluate=evaluate_classes,
        job=job,
        promote=promote,
        deploy=deploy,
        kubeflow=kubeflow,
    )
