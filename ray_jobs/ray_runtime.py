"""A Ray session for a job: the cluster that RAY_ADDRESS names, or a private one that ends with
the job."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_jobs.sections import ResourceSpec

# At most two members train side by side on one machine (the local pipeline runner's limit), so each
# takes half.
SIDE_BY_SIDE = 2
OBJECT_STORE_BYTES = (
    128 * 2**20
)  # rows travel through the storage; the store only carries arguments and results


def available_cpus(resources: ResourceSpec) -> int:
    """CPUs the job may use on this machine."""
    return resources.num_cpus or len(os.sched_getaffinity(0))


def cpus_per_worker(resources: ResourceSpec) -> int:
    """CPUs of each of the workers that train one network together."""
    return max(1, available_cpus(resources) // resources.num_workers)


def quiet_environment() -> None:
    """Settings Ray reads when it starts: a token of this run's own, no telemetry, no prompts."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    spin_briefly()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # else it idles 2 s a turn


def spin_briefly() -> None:
    """Before torch is imported: a thread of it that waits must not spin for long on the core that
    another needs. On a busy machine that makes a training step ten times slower."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def session(resources: ResourceSpec) -> Iterator[int]:
    """Connect to Ray, yield the CPUs a member may use, and leave it as it was found."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        quiet_environment()  # before the import, which reads it
    import ray

    num_cpus = available_cpus(resources)
    cpus_per_member = resources.cpus_per_member or max(1, num_cpus // SIDE_BY_SIDE)
    if ray.is_initialized():
        yield cpus_per_member
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the job at once
    try:
        yield cpus_per_member
    finally:
        ray.shutdown()
