"""The pipeline of a workload that trains one network: prepare -> preflight -> (sweep ->) train ->
evaluate -> register (-> promote -> deploy)."""

from typing import Any

from kfp import dsl

from components.preflight import preflight
from components.register import register
from components.sweep import sweep
from components.train import train
from pipelines.release import release
from pipelines.steps import configure
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.workloads.network import NetworkSpec


def network_pipeline(
    name: str,
    description: str,
    *,
    prepare: Any,
    evaluate: Any,
    job: NetworkSpec | None,
    promote: bool,
    deploy: str | None,
    kubeflow: KubeflowSpec | None,
) -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`
    (none: as the pipeline's own run).

    Args:
        prepare, evaluate: the workload's own components.
        job: the description of one job, where the pipeline is made for it: it says whether there is
            a sweep. Else there is none.
        promote: have the gate judge what is registered.
        deploy: where to deploy a version that has become the champion; implies `promote`.
        kubeflow: what each step gets on a cluster; None: the steps are processes here.
    """
    sweeps = job is not None and job.sweeps

    @dsl.pipeline(name=f"{name}-sweep" if sweeps else name, description=description)
    def network(spec: str, run_id: str = "") -> None:
        prepared = prepare(spec=spec, run_id=run_id, pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        checked = preflight(run=prepared.outputs["Output"])
        ready = sweep(run=checked.outputs["Output"]) if sweeps else checked
        trained = train(run=ready.outputs["Output"])
        evaluated = evaluate(run=trained.outputs["Output"])
        registered = register(run=evaluated.outputs["Output"])
        if promote or deploy:
            release(evaluated.outputs["Output"], after=registered, target=deploy)
        configure(kubeflow, name)

    return network
