"""The fire pipeline: prepare -> train each member -> ensemble -> evaluate -> register (-> promote
-> deploy)."""

from typing import Any

from kfp import dsl

from components.ensemble import ensemble
from components.evaluate import evaluate
from components.prepare import prepare
from components.register import register
from components.train_member import train_member
from pipelines.release import release
from pipelines.steps import configure
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.workloads.fire import FireSpec


def pipeline(
    job: FireSpec | None = None,
    *,
    promote: bool = False,
    deploy: str | None = None,
    kubeflow: KubeflowSpec | None = None,
) -> Any:
    """The pipeline, with parameters `spec` (a resolved job description, YAML) and `run_id`
    (none: as the pipeline's own run).

    Args:
        job: the description of one job, where the pipeline is made for it: it says whether members
            train at the same time. Else they do, as many as the backend allows.
        promote: have the gate judge what is registered.
        deploy: where to deploy a version that has become the champion; implies `promote`.
        kubeflow: what each step gets on a cluster; None: the steps are processes here.
    """
    parallelism = 1 if job is not None and not job.parallel else None

    @dsl.pipeline(name="fire", description="An ensemble that finds fires in sensor readings.")
    def fire(spec: str, run_id: str = "") -> None:
        prepared = prepare(spec=spec, run_id=run_id, pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        # Within a loop, kfp.local (2.17) puts the item in place of any other step's output: so
        # an item is the member's whole URI, and the loop needs nothing else.
        with dsl.ParallelFor(items=prepared.outputs["Output"], parallelism=parallelism) as member:
            trained = train_member(member=member)
        combined = ensemble(
            run=prepared.outputs["run"], statuses=dsl.Collected(trained.outputs["Output"])
        )
        evaluated = evaluate(run=combined.outputs["Output"])
        registered = register(run=evaluated.outputs["Output"])
        if promote or deploy:
            release(evaluated.outputs["Output"], after=registered, target=deploy)
        configure(kubeflow, "fire")

    return fire
