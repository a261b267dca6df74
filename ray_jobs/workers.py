"""The processes that train one network together: a Ray task, or several workers of Ray Train.

One worker needs no process group, and to form one takes Ray Train longer than a small network needs
to train. Either way a worker that is lost is started again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray_jobs.errors import JobFailed, RetryableError
from ray_jobs.ray_runtime import available_cpus, cpus_per_worker
from ray_jobs.sections import ResourceSpec
from ray_jobs.storage import Storage, brief_cause

MAX_FAILURES = 3  # restarts before the job fails

Work = Callable[[dict[str, Any]], None]


def run_workers(
    work: Work,
    config: dict[str, Any],
    resources: ResourceSpec,
    *,
    name: str,
    storage: Storage,
    folder: str,
) -> None:
    """Call `work(config)` in every worker, and wait for all; Ray is connected.

    Args:
        work: in a process group, if there are several workers.
        config: what it needs beside `num_cpus`, which each is told.
        name: used once.
        storage: what all workers reach.
        folder: in `storage`, for Ray Train's own files; emptied, and gone afterwards.

    Raises:
        JobFailed: the workers died or failed too often.
        RetryableError: the storage failed.
    """
    import ray

    # Asked of Ray, for this process may run on a node without one; and torch need not be imported.
    is_gpu = resources.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) >= 1
    if resources.num_workers == 1:
        _run_one(work, config, cpus_per_worker(resources), is_gpu, name)
    else:
        with _scratch(storage, folder):
            _run_group(work, config, resources, is_gpu, name, storage, folder)


def _run_one(work: Work, config: dict[str, Any], num_cpus: int, is_gpu: bool, name: str) -> None:
    import ray

    task = ray.remote(work).options(
        name=name,
        num_cpus=num_cpus,
        num_gpus=int(is_gpu),
        max_retries=MAX_FAILURES,
        retry_exceptions=True,
    )
    try:
        ray.get(task.remote({**config, "num_cpus": num_cpus}))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RetryableError):  # the worker could not even leave it on the storage
            raise cause from None
        raise JobFailed(f"the training worker failed: {_last_line(error)}") from error


def _run_group(
    work: Work,
    config: dict[str, Any],
    resources: ResourceSpec,
    is_gpu: bool,
    name: str,
    storage: Storage,
    folder: str,
) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    num_cpus = _cpus_in_group(resources)
    trainer = TorchTrainer(
        work,
        train_loop_config={**config, "num_cpus": num_cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=is_gpu,
            resources_per_worker={"CPU": num_cpus, **({"GPU": 1} if is_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            # Ray Train looks for its files on every node, where no local folder of this one is.
            storage_path=storage.full(folder),
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        for cause in getattr(error, "worker_failures", {}).values():
            if isinstance(cause, RetryableError):
                raise cause from None
        raise JobFailed(f"the training workers failed: {_last_line(error)}") from error


def _cpus_in_group(resources: ResourceSpec) -> int:
    """CPUs of each worker: the workers share every machine, not one of them alone."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    sizes = [num_cpus for num_cpus in nodes if num_cpus] or [1]
    side_by_side = math.ceil(resources.num_workers / len(sizes))
    return max(cpus_per_worker(resources), min(available_cpus(resources), *sizes) // side_by_side)


@contextmanager
def _scratch(storage: Storage, folder: str) -> Iterator[None]:
    try:
        storage.delete_folder(folder)  # left by a job that was killed
        try:
            yield
        finally:
            storage.delete_folder(folder)
    except OSError as error:
        raise RetryableError(
            f"storage {storage.uri!r} does not answer ({brief_cause(error)}); the same command "
            "with the same --run-id goes on from the last checkpoint"
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
