"""What a sweep takes: how many trials run side by side, and how many epochs they train."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ray_jobs.errors import PreflightError
from ray_jobs.sweeping.rungs import rungs_of
from ray_jobs.sweeping.spec import SweepSpec


@dataclass(frozen=True)
class Epochs:
    """Of all trials together, where none fails or stops early."""

    least: int  # only the trials that are best in the end climb
    most: int  # each trial is better than those before it
    full: int  # if every trial were trained in full


def count_epochs(spec: SweepSpec) -> Epochs:
    """Bounds of the epochs that the trials of a sweep train.

    Of n trials that come to a rung, pausing ASHA promotes at least the floor(n / eta) that are best
    in the end, and at most one with each trial that comes, from the eta-th on (Li et al. 2018,
    algorithm 2). Ray's ASHA lets the first go on, and any that beats enough of those before it.
    """
    rungs, eta = rungs_of(spec), spec.reduction_factor
    least = most = spec.num_trials
    least_epochs = most_epochs = spec.num_trials * rungs[0]
    for below, rung in pairwise(rungs):
        if spec.scheduler == "pausing_asha":
            least, most = least // eta, max(0, most - eta + 1)
        else:
            least = min(1, least)
        least_epochs += least * (rung - below)
        most_epochs += most * (rung - below)
    return Epochs(least_epochs, most_epochs, full=spec.num_trials * spec.max_epochs)


def trials_side_by_side(spec: SweepSpec, *, num_cpus: float, num_gpus: float) -> int:
    """Trials that run at the same time on so many CPUs and GPUs.

    Raises:
        PreflightError: not even one can.
    """
    needs = {
        "CPU": (spec.cpus_per_trial, num_cpus),
        "GPU": (spec.gpus_per_trial, num_gpus),
    }
    fitting = []
    for name, (need, there) in needs.items():
        if need:
            fitting.append(int(there / need + 1e-9))
            if not fitting[-1]:
                raise PreflightError(
                    f"a trial asks for {need:g} {name} and Ray has {there:g}; lower "
                    f"sweep.{name.lower()}s_per_trial"
                )
    return min([*fitting, spec.max_concurrent_trials or spec.num_trials, spec.num_trials])
