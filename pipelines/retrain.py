"""The retraining pipeline: drift -> retrain -> the workload's pipeline -> promote (-> deploy)."""

from importlib import import_module
from typing import Any

from kfp import dsl

from components.drift import drift
from components.retrain import retrain
from pipelines.release import release
from pipelines.steps import configure
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.retrain import model_of
from ray_jobs.sections import JobSpec


def pipeline(
    job: JobSpec | None = None,
    *,
    deploy: str | None = None,
    kubeflow: KubeflowSpec | None = None,
) -> Any:
    """The pipeline of KFP, with parameters `data` (a list of URIs), `storage`, `on` (`always` or
    `drift`) and `since` (`7d`: drift of the last week's requests). A recurring run of it retrains
    on a schedule.

    drift -> retrain (old and new data, and the run that trains on them) -> the workload's pipeline
    -> promote -> deploy. Where the gate has seen the data, nothing follows `retrain`.

    Args:
        job: it says which workload's pipeline and which registered model; fire's by default. What
            is trained is what the champion was, on more data.
        deploy: where to deploy a new champion; None: nowhere.
        kubeflow: what each step gets on a cluster; None: the steps are processes here.
    """
    workload = "fire" if job is None else job.workload
    model = workload if job is None else model_of(job)
    train = import_module(f"pipelines.{workload}").pipeline(job, kubeflow=kubeflow)

    @dsl.pipeline(
        name=f"{workload}-retraining",
        description="Train on old and new data, pass the gate, promote and deploy.",
    )
    def retraining(data: list, storage: str, on: str = "always", since: str = "") -> None:
        looked = drift(model=model, storage=storage, on=on, since=since)
        found = retrain(
            workload=workload,
            model=model,
            data=data,
            storage=storage,
            is_due=looked.outputs["Output"],
        )
        # On what the step returns: kfp.local (2.17) takes conditions on other outputs for unmet.
        with dsl.If(found.outputs["Output"] == "yes", name="is-new"):
            trained = train(spec=found.outputs["spec"], run_id=found.outputs["run_id"])
            release(found.outputs["run"], after=trained, target=deploy, once_for_data=True)
        configure(kubeflow, workload)

    return retraining
