"""The processes that train one network together: a Ray task, or several workers of Ray Train.

One worker needs no process group, and to form one takes Ray Train longer than a small network needs
to train. Either way a worker that is lost is started again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from ray_jobs.errors import JobFailed
from ray_jobs.ray_runtime import cpus_per_worker
from ray_jobs.sections import ResourceSpec

MAX_FAILURES = 3  # restarts before the job fails

Work = Callable[[dict[str, Any]], None]


def run_workers(work: Work, config: dict[str, Any], resources: ResourceSpec, *, name: str) -> None:
    """Call `work(config)` in every worker, and wait for all; Ray is connected.

    Args:
        work: in a process group, if there are several workers.
        config: what it needs beside `num_cpus`, which each is told.
        name: used once.

    Raises:
        JobFailed: the workers died or failed too often.
    """
    import ray

    num_cpus = cpus_per_worker(resources)
    # Asked of Ray, for this process may run on a node without one; and torch need not be imported.
    is_gpu = resources.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) >= 1
    run = _run_one if resources.num_workers == 1 else _run_group
    run(work, {**config, "num_cpus": num_cpus}, resources.num_workers, num_cpus, is_gpu, name)


def _run_one(
    work: Work, config: dict[str, Any], num_workers: int, num_cpus: int, is_gpu: bool, name: str
) -> None:
    import ray

    task = ray.remote(work).options(
        name=name,
        num_cpus=num_cpus,
        num_gpus=int(is_gpu),
        max_retries=MAX_FAILURES,
        retry_exceptions=True,
    )
    try:
        ray.get(task.remote(config))
    except ray.exceptions.RayError as error:
        raise JobFailed(f"the training worker failed: {_last_line(error)}") from error


def _run_group(
    work: Work, config: dict[str, Any], num_workers: int, num_cpus: int, is_gpu: bool, name: str
) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="emberline-train-") as scratch:
        trainer = TorchTrainer(
            work,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=is_gpu,
                resources_per_worker={"CPU": num_cpus, **({"GPU": 1} if is_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobFailed(f"the training workers failed: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
