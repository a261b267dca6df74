"""The preflight job: everything that can be checked in seconds is checked before the first epoch.

`emberline run --dry-run` and `emberline doctor` make the same checks without a run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_jobs import ray_runtime
from ray_jobs.checks import (
    Check,
    Checklist,
    SweepEstimate,
    check_packages,
    check_storage,
    check_torch,
    counted,
    duration,
    find_device,
)
from ray_jobs.errors import PreflightError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage, brief_cause
from ray_jobs.sweeping.budget import count_epochs, trials_side_by_side
from ray_jobs.sweeping.search import check_search

if TYPE_CHECKING:
    from ray_jobs.run import Run
    from ray_jobs.sections import ResourceSpec
    from ray_jobs.sweeping.spec import SweepSpec

REPORT = "artifacts/preflight.json"


def preflight(run: Run) -> list[Check]:
    """Check all that the training of a run's network needs. Writes artifacts/preflight.json.

    Raises:
        PreflightError: checks have failed; a line for each, with its fix.
        DataError: the run has not been prepared.
    """
    from ray_jobs.prepare import read_data

    journal = run.journal("preflight")
    with journal.phase():
        checklist = examine(run.spec, read_data(run), run.storage)
        report = checklist.to_dict()
        run.storage.write_text(run.path(REPORT), json.dumps(report, indent=2))
        journal("preflight", **report)
        checklist.raise_failed()
    return checklist.checks


def examine(spec: Any, data: DataSummary, storage: Storage) -> Checklist:
    """Every check that a job with one network needs, without a run.

    Args:
        spec: the workload's job description.
        data: its prepared dataset.
    """
    ray_runtime.spin_briefly()  # as the workers do, whose time is estimated
    checklist = Checklist()
    checklist.add(check_packages())
    checklist.add(check_torch())
    checklist.add(check_storage(storage.uri))
    add_training_checks(checklist, spec, data, storage)
    return checklist


def add_training_checks(
    checklist: Checklist, spec: Any, data: DataSummary, storage: Storage
) -> None:
    """Those of device, workers, network and sweep. `torch` has been checked before."""
    resources = spec.resources
    checklist.make("device", lambda: find_device(resources.device), needs=["torch"])
    if not checklist.has_passed("device"):
        checklist.make("workers, network", str, needs=["device"])
        return
    from ray_jobs.devices import choose_device
    from ray_jobs.training.preflight import check_network

    is_gpu = choose_device(resources.device).type == "cuda"
    offers: list[Offer] = []

    def look() -> str:
        offers.append(find_offer(resources))
        return find_workers(resources, offers[0], is_gpu=is_gpu)

    checklist.make("workers", look)
    if spec.sweeps:
        check_sweep(checklist, spec, data, storage, offers, is_gpu=is_gpu)
        return
    num_nodes = offers[0].num_nodes if offers else 1
    # Workers on a CPU share its memory; each has a GPU to itself.
    num_sharing = 1 if is_gpu else math.ceil(resources.num_workers / num_nodes)
    check_network(checklist, spec, data, storage, num_sharing=num_sharing)


def check_sweep(
    checklist: Checklist,
    spec: Any,
    data: DataSummary,
    storage: Storage,
    offers: Sequence[Offer],
    *,
    is_gpu: bool,
) -> None:
    """Add the checks of the trials of a sweep, and an estimate of what they take all together.

    Args:
        offers: what there is for them; none if that could not be found out.
    """
    from ray_jobs.training.preflight import check_network

    sweep, num_trials = spec.sweep, 1

    def fit_trials() -> str:
        nonlocal num_trials
        check_search(sweep)
        num_trials = trials_side_by_side(
            sweep, num_cpus=offers[0].num_cpus, num_gpus=offers[0].num_gpus
        )
        gpus = f" and {sweep.gpus_per_trial:g} GPU" if sweep.gpus_per_trial else ""
        each = f"{sweep.cpus_per_trial:g} CPU{gpus} each"
        return f"{num_trials} of {sweep.num_trials} side by side, {each}"

    checklist.make("trials", fit_trials, needs=["workers"])
    num_places = 1
    if offers:
        num_places = max(1, offers[0].num_gpus) if is_gpu else offers[0].num_nodes
    num_sharing = math.ceil(num_trials / num_places)
    check_network(checklist, as_one_trial(spec), data, storage, num_sharing=num_sharing)

    def estimate() -> str:
        assert checklist.estimate is not None
        checklist.sweep = estimate_sweep(sweep, checklist.estimate.epoch_s, num_trials)
        (least, most), (least_s, most_s) = checklist.sweep.num_epochs, checklist.sweep.seconds
        return (
            f"{least:,} to {most:,} epochs of all trials in about {duration(least_s)} to "
            f"{duration(most_s)}"
        )

    checklist.make("sweep", estimate, needs=["trials", "time"])


def as_one_trial(spec: Any) -> Any:
    """The description of a job that trains what a trial trains, on what a trial has."""
    num_cpus = max(1, int(spec.sweep.cpus_per_trial))
    resources = spec.resources.model_copy(update={"num_workers": 1, "num_cpus": num_cpus})
    train = spec.train.model_copy(update={"epochs": spec.sweep.max_epochs})
    return spec.model_copy(update={"resources": resources, "train": train})


def estimate_sweep(sweep: SweepSpec, epoch_s: float, num_side_by_side: int) -> SweepEstimate:
    """What all trials take, if an epoch of each takes `epoch_s`."""
    epochs = count_epochs(sweep)
    bounds = (epochs.least, epochs.most)
    # However many run side by side, the one that climbs to the top is trained in full.
    least_s, most_s = (epoch_s * max(n / num_side_by_side, sweep.max_epochs) for n in bounds)
    return SweepEstimate(num_side_by_side, bounds, epochs.full, (least_s, most_s))


@dataclass(frozen=True)
class Offer:
    """What there is for the workers of a job."""

    where: str
    num_cpus: int
    num_gpus: int
    num_nodes: int = 1


def find_offer(resources: ResourceSpec) -> Offer:
    """What the cluster that RAY_ADDRESS names has, or this machine.

    Raises:
        PreflightError: the cluster does not answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        import torch

        num_cpus = ray_runtime.available_cpus(resources)
        return Offer("this machine", num_cpus, torch.cuda.device_count())
    import ray

    try:
        with ray_runtime.session(resources):
            there = ray.cluster_resources()
            num_nodes = sum(node["Alive"] for node in ray.nodes())
    except (ConnectionError, RuntimeError) as error:
        raise PreflightError(
            f"the Ray cluster at RAY_ADDRESS={address} does not answer ({brief_cause(error)}); "
            "start it, or unset RAY_ADDRESS to train on this machine"
        ) from None
    return Offer("the cluster", int(there.get("CPU", 0)), int(there.get("GPU", 0)), num_nodes)


def find_workers(resources: ResourceSpec, offer: Offer, *, is_gpu: bool) -> str:
    """Whether the workers asked for find their CPUs and GPUs.

    Raises:
        PreflightError: they do not, and would wait for ever.
    """
    num_workers, num_cpus = resources.num_workers, ray_runtime.cpus_per_worker(resources)
    asked = f"resources.num_workers={num_workers}"
    if is_gpu and num_workers > offer.num_gpus:
        raise PreflightError(
            f"{asked} needs {num_workers} GPUs, but {offer.where} has {offer.num_gpus}; set "
            f"resources.num_workers={offer.num_gpus or 1}"
            + ("" if offer.num_gpus else " and resources.device=cpu")
        )
    if num_workers > offer.num_cpus:
        raise PreflightError(
            f"{asked} needs {num_workers} CPUs, but {offer.where} has {offer.num_cpus} for the "
            f"job; set resources.num_workers={offer.num_cpus} or less"
        )
    if num_workers * num_cpus > offer.num_cpus:
        raise PreflightError(
            f"{asked} with {num_cpus} CPUs each needs {num_workers * num_cpus}, but {offer.where} "
            f"has {offer.num_cpus}; set resources.num_cpus={offer.num_cpus}"
        )
    each = counted(num_cpus, "CPU") + (" and a GPU" if is_gpu else "")
    return f"{counted(num_workers, 'worker')} with {each}{' each' if num_workers > 1 else ''}"
