"""The sweep: trials on Ray Tune, promoted by their values, and the winner named.

Everything that a sweep goes on from stands in its run's storage, as JSON: a sweep that was killed
is started again by the same call, on the same folder. Tune's own restore is not used; it unpickles
what it finds there and forgets young trials.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_jobs import ray_runtime
from ray_jobs.errors import RetryableError, Stopped
from ray_jobs.result import Objective
from ray_jobs.sections import ResourceSpec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.budget import trials_side_by_side
from ray_jobs.sweeping.progress import Progress
from ray_jobs.sweeping.records import RESULT
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.search import check_search
from ray_jobs.sweeping.spec import SweepSpec
from ray_jobs.sweeping.trial import TrainTrial, TrialSetting, train_trial_here

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

MAX_TRIAL_FAILURES = 1  # a trial that fails is tried once more, from its checkpoint
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables are printed at verbose=0, too
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a trial's reason is in the journal and the result
}


def run_sweep(
    *,
    spec: SweepSpec,
    objective: Objective,
    seed: int,
    storage: Storage,
    folder: str,
    train_trial: TrainTrial,
    resources: ResourceSpec,
    emit: Callable[..., None],
    stop_requested: Callable[[], bool] = lambda: False,
    basis: str = "",
) -> SweepResult:
    """Run a sweep, or go on with one that was killed, or read one that is done.

    The promotions and the winner depend on the spec, the seed, the values that trials report and
    the number of trials that fitted side by side when the sweep began, but neither on timing nor on
    kills (see schedule.py). With sweep.scheduler "asha", Ray's own, they do depend on both.

    Args:
        storage, folder: the run's; see records.py for what is written there.
        train_trial: trains one configuration (dotted key -> value) in a process of Ray's and
            reports every epoch; see TrialContext for what it promises.
        resources: of this machine, where no cluster is named by RAY_ADDRESS.
        emit: the journal; receives `trial_started` and `trial_resumed` (trial, epoch, config),
            `trial_epoch` (trial, epoch, value, best, metrics), `trial_paused` (trial, epoch,
            value), `trial_promoted` (trial, epoch, to_epoch, value), `trial_ended` (trial, status,
            reason, epoch, value, config) and `warning` (message).
        stop_requested: looked at once a second.
        basis: digest of what else decides the values, such as the data; a sweep does not go on from
            trials with another one.

    Raises:
        SpecError: the folder holds a sweep of another spec, or the search needs a package.
        PreflightError: no trial fits.
        JobFailed: every trial failed, or the records are not of this version.
        RetryableError: Ray or the storage failed; the same call goes on.
        Stopped: it was asked to stop.
    """
    check_search(spec)
    sweep = Progress(spec, objective, seed, storage, folder, emit, basis)
    earlier = sweep.earlier_result()
    if earlier is not None:
        return earlier
    with ray_runtime.session(resources):
        sweep.prepare(_fitting_trials(spec))
        if not sweep.is_over:
            _tune(sweep, train_trial, stop_requested)
    result = sweep.result()
    storage.write_text(f"{folder}/{RESULT}", result.model_dump_json(indent=1))
    return result


def _tune(
    sweep: Progress,
    train_trial: TrainTrial,
    stop_requested: Callable[[], bool],
) -> None:
    """Let Ray Tune run the trials until the sweep is over."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from ray import tune
    from ray.tune.error import TuneError

    from ray_jobs.sweeping.asha import TRIAL, PausingASHA
    from ray_jobs.sweeping.tuning import Recorder, StopOnRequest, TrialQueue

    spec = sweep.spec
    scheduler: TrialScheduler
    if sweep.pauses:
        scheduler = PausingASHA(
            sweep.schedule, num_slots=sweep.num_fitting, runs_ahead=sweep.runs_ahead
        )
        queue = TrialQueue(sweep.records, scheduler.next_new, lambda: sweep.schedule.is_over)
    else:
        scheduler = _stock_scheduler(sweep)
        waiting = list(sweep.unfinished())
        queue = TrialQueue(sweep.records, lambda: waiting.pop(0), lambda: not waiting)
    setting = TrialSetting(
        sweep.storage.uri,
        sweep.folder,
        spec.max_epochs,
        tuple(sweep.rung_epochs),
        spec.cpus_per_trial,
        sweep.objective.mode,
    )

    def trial(config: dict[str, int]) -> None:
        train_trial_here(setting, config[TRIAL], train_trial)

    recorder = Recorder(
        sweep.records,
        sweep.emit,
        mode=sweep.objective.mode,
        max_epochs=spec.max_epochs,
        rung_epochs=tuple(sweep.rung_epochs),
        is_parked=sweep.is_parked,
        on_change=sweep.keep,
    )
    stopper = StopOnRequest(stop_requested)
    with tempfile.TemporaryDirectory(prefix="emberline-sweep-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": spec.cpus_per_trial, "gpu": spec.gpus_per_trial}),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=None if sweep.pauses else sweep.num_fitting,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[recorder],
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RetryableError(
                f"the sweep broke off: {lines[-1] if lines else error!r}; the same command with "
                "the same --run-id goes on with it"
            ) from error
    if not sweep.is_over:
        raise Stopped(
            "the sweep was asked to stop; the same command with the same --run-id goes on with it"
        )


def _stock_scheduler(sweep: Progress) -> TrialScheduler:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from ray_jobs.sweeping.asha import BEST, EPOCH

    if sweep.spec.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        metric=BEST,
        mode=sweep.objective.mode,
        max_t=sweep.spec.max_epochs,
        grace_period=sweep.spec.grace_epochs,
        reduction_factor=sweep.spec.reduction_factor,
    )


def _fitting_trials(spec: SweepSpec) -> int:
    """Trials that fit side by side on the Ray cluster.

    Raises:
        PreflightError: none does.
    """
    import ray

    there = ray.cluster_resources()
    return trials_side_by_side(spec, num_cpus=there.get("CPU", 0.0), num_gpus=there.get("GPU", 0.0))
