"""The steps of a pipeline on a cluster: what a job description gives each of them."""

from __future__ import annotations

from typing import Any

from ray_jobs.attempts import PIPELINE_RUN
from ray_jobs.kubeflow_spec import KubeflowSpec, StepSpec

# KFP's cache knows a step by its image and its inputs. These read nothing but the run that they are
# given, whose URI has the data's digest in it, and leave everything there. The others look at the
# world (data, registry, deployments), or say so if one member of several has failed.
CACHEABLE = ("sweep", "train", "ensemble", "evaluate", "evaluate_classes", "evaluate_gcode")
_DECIDED = "gate"  # it repeats what `promote` has said
_NVIDIA = "nvidia.com/gpu"
# KFP labels the pods of a run so.
_RUN_LABEL = "metadata.labels['pipeline/runid']"


def configure(kubeflow: KubeflowSpec | None, workload: str) -> None:
    """Give every step of the pipeline that is being defined what `kubeflow` says. It is the last
    thing that a pipeline's function does.

    Args:
        kubeflow: None: the pipeline is for this machine, and there is nothing to give.
    """
    if kubeflow is None:
        return
    from kfp.dsl.pipeline_context import Pipeline

    for task in Pipeline.get_default_pipeline().tasks.values():
        if task.container_spec is None:  # a pipeline within it, which has seen to its own steps
            task.set_caching_options(False)
        else:
            name = task.component_spec.name.replace("-", "_")
            _configure(task, name, kubeflow)
            for key, value in _labels(name, workload, kubeflow).items():
                _kubernetes().add_pod_label(task, key, value)


def _configure(task: Any, name: str, kubeflow: KubeflowSpec) -> None:
    kubernetes = _kubernetes()
    if kubeflow.image:
        task.set_container_image(kubeflow.image)
    task.set_caching_options(kubeflow.caching and name in CACHEABLE)
    retries = kubeflow.retries
    if retries.num and name != _DECIDED:
        task.set_retry(
            retries.num,
            backoff_duration=f"{retries.wait_s}s",
            backoff_factor=retries.factor,
            backoff_max_duration=f"{retries.within_s}s",
        )
    kubernetes.use_field_path_as_env(task, PIPELINE_RUN, _RUN_LABEL)
    for variable, value in sorted(kubeflow.env.items()):
        task.set_env_variable(variable, value)
    for variable, source in sorted(kubeflow.secrets.items()):
        kubernetes.use_secret_as_env(task, source.secret, {source.key: variable})
    for claim, path in sorted(kubeflow.volumes.items()):
        kubernetes.mount_pvc(task, claim, path)
    if kubeflow.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, kubeflow.image_pull_secrets)
    _place(task, kubeflow.step(name))


def _place(task: Any, step: StepSpec) -> None:
    kubernetes = _kubernetes()
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            "shared-memory",
            "/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=step.shared_memory,
        )
    if step.gpus:
        task.set_accelerator_type(step.accelerator or _NVIDIA).set_accelerator_limit(step.gpus)
    if step.timeout_s:
        kubernetes.set_timeout(task, step.timeout_s)
    for key, value in sorted(step.node_selector.items()):
        kubernetes.add_node_selector(task, key, value)
    for one in step.tolerations:
        kubernetes.add_toleration(
            task,
            key=one.key,
            operator=one.operator,
            value=one.value,
            effect=one.effect,
            toleration_seconds=one.seconds,
        )


def _labels(name: str, workload: str, kubeflow: KubeflowSpec) -> dict[str, str]:
    """Of a step's pod. Which run it belongs to, KFP's own label `pipeline/runid` says."""
    own = {
        "app.kubernetes.io/part-of": "emberline",
        "emberline/step": name,
        "emberline/workload": workload,
    }
    return dict(sorted({**kubeflow.labels, **own}.items()))


def _kubernetes() -> Any:
    from kfp import kubernetes

    return kubernetes
