"""The training of a network: the guarded loop on Ray's workers, or in a trial of a sweep.

The run's own checkpoints are what a lost worker, a lost node or a lost driver goes on from: Ray
restarts the workers, the same run id restarts the driver, and both read the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.devices import choose_device
from ray_jobs.errors import EmberlineError, JobFailed, RetryableError, Stopped
from ray_jobs.members import HISTORY, STEPS, end_member, read_member_result
from ray_jobs.prepare import read_data
from ray_jobs.result import DataSummary, MemberResult
from ray_jobs.run import Run
from ray_jobs.stopping import sigterm_asks_to_stop, wait_or_stop
from ray_jobs.sweeping.winner import as_trained, as_trial, winner_checkpoints
from ray_jobs.workers import run_workers
from ray_jobs.workloads.network import MODEL, VAL, NetworkWorkload

if TYPE_CHECKING:
    from torch import nn

    from ray_jobs.models.base import FitReport
    from ray_jobs.sweeping.search import Config
    from ray_jobs.sweeping.trial import TrialContext
    from ray_jobs.training.checkpoints import CheckpointStore
    from ray_jobs.training.task import NetworkTask

_OUTCOME = "outcome.json"
_SCRATCH = "ray-train"  # a folder that is there while several workers train
_ERRORS: tuple[type[EmberlineError], ...] = (Stopped, RetryableError, JobFailed)


def fit(run: Run) -> MemberResult:
    """Train the run's network, or go on where an earlier attempt was cut off.

    Raises:
        JobFailed: a guard stopped it, or its workers died too often.
        RetryableError: the storage failed.
        Stopped: the run was asked to stop; a checkpoint is written.
    """
    journal = run.journal("train")
    with journal.phase():
        data = read_data(run)
        earlier = read_member_result(run, MODEL)
        if earlier.status == "SUCCEEDED" and earlier.spec_digest == _digest(as_trained(run), data):
            return earlier
        started = datetime.now(UTC)
        journal("member_started", member=MODEL)
        try:
            with sigterm_asks_to_stop(run):
                result = _train(run)
        except JobFailed as error:
            family = run.spec.families()[MODEL]
            failed = MemberResult(name=MODEL, family=family, status="FAILED", reason=str(error))
            end_member(run, journal, failed, started)
            raise
        return end_member(run, journal, result, started)


def train_trial(run_uri: str, config: Config, trial: TrialContext) -> None:
    """Train one trial of the run's sweep, in a process of Ray Tune's, until it ends or is parked.

    Raises:
        JobFailed: a guard stopped it.
        RetryableError: the storage failed.
    """
    import torch

    from ray_jobs.training.checkpoints import CheckpointStore

    run = as_trial(Run.at(run_uri), config)
    journal, metric = run.journal(f"trial-{trial.trial_id}"), run.spec.objective.metric
    num_cpus = max(1, int(trial.num_cpus))
    torch.set_num_threads(num_cpus)

    def emit(event: str, **fields: Any) -> None:
        if event == "warning":  # the rest is the sweep's to tell
            journal(event, trial=trial.trial_id, **fields)

    def report(entry: dict[str, Any]) -> None:
        numbers = {name: value for name, value in entry.items() if isinstance(value, float)}
        trial.report(entry["epoch"], entry[metric], numbers)

    _learn(
        run,
        read_data(run),
        num_cpus,
        emit,
        CheckpointStore(trial.storage, trial.folder, emit),
        kept_epochs=frozenset(trial.rung_epochs),
        on_epoch=report,
    )
    journal.flush()


def load_task(run: Run, data: DataSummary) -> tuple[NetworkTask, nn.Module]:
    """The task on this process's device, and its trained network.

    Raises:
        JobFailed: the network's files are missing or altered.
    """
    from safetensors.torch import load_file

    from ray_jobs.models.bundle_files import WEIGHTS, verify

    member = read_member_result(run, MODEL)
    if member.status != "SUCCEEDED":
        raise JobFailed(f"run {run.run_id!r} has no trained network; run its train step first")
    task = _make_task(as_trained(run), data, num_cpus=len(os.sched_getaffinity(0)))
    network = task.build(weights=False)
    with run.storage.local_folder(run.path("checkpoints", MODEL, "trained")) as folder:
        verify(folder, {WEIGHTS: member.digests[WEIGHTS]})
        network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval()
    return task, network


def _train(run: Run) -> MemberResult:
    """Start the workers and wait for what they leave."""
    from ray_jobs import ray_runtime

    outcome_path = run.path("checkpoints", MODEL, _OUTCOME)
    if run.storage.exists(outcome_path):
        run.storage.delete(outcome_path)
    name = f"{run.run_id}-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    with ray_runtime.session(run.spec.resources):
        work = partial(
            run_workers,
            _worker,
            {"run": run.uri},
            run.spec.resources,
            name=name,
            storage=run.storage,
            folder=run.path("checkpoints", MODEL, _SCRATCH),
        )
        wait_or_stop(run, work)
    return _read_outcome(run)


def _worker(config: dict[str, Any]) -> None:
    """One of the workers. What a user should read of its end goes to storage: an exception would be
    taken for a lost worker, and the training repeated."""
    import torch

    run = as_trained(Run.at(config["run"]))
    torch.set_num_threads(config["num_cpus"])
    is_group = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if is_group else 0
    try:
        outcome = _train_here(run, read_data(run), rank, config["num_cpus"])
    except EmberlineError as error:
        _leave(run, {"error": type(error).__name__, "message": str(error)})
        run.storage.write_text(
            run.path("checkpoints", MODEL, "traceback.txt"), traceback.format_exc()
        )
        if is_group:
            torch.distributed.destroy_process_group()  # the others must not wait for this one
    except RuntimeError:  # such as the end of the connection to a worker that gave up
        if not run.storage.exists(run.path("checkpoints", MODEL, _OUTCOME)):
            raise
    else:
        if rank == 0:
            _leave(run, outcome)


def _leave(run: Run, outcome: dict[str, Any]) -> None:
    run.storage.write_text(run.path("checkpoints", MODEL, _OUTCOME), json.dumps(outcome))


def _train_here(run: Run, data: DataSummary, rank: int, num_cpus: int) -> dict[str, Any]:
    """Train on this worker; the first one stores the network and what it says of validation."""
    from ray_jobs.training.checkpoints import CheckpointStore

    journal = run.journal("train" if rank == 0 else f"train-{rank}")

    def emit(event: str, **fields: Any) -> None:
        journal(event, member=MODEL, **fields)

    steps = f"{STEPS}-{_digest(run, data)[:12]}"  # of this data and recipe alone
    folder_of_steps = winner_checkpoints(run) or run.path("checkpoints", MODEL, steps)
    store = CheckpointStore(run.storage, folder_of_steps, emit)
    try:
        task, network, report = _learn(
            run, data, num_cpus, emit, store, stop_requested=run.is_stop_requested
        )
    finally:
        journal.flush()
    predictions = task.predict(network, "val")
    if rank != 0:
        journal.flush()
        return {}
    predictions.write(run.storage, run.path(VAL))
    with tempfile.TemporaryDirectory(prefix="emberline-") as scratch:
        folder = Path(scratch)
        task.write(network, folder)
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())
        }
        run.storage.publish_folder(folder, run.path("checkpoints", MODEL, "trained"))
    for path in (f"checkpoints/{MODEL}/{HISTORY}", "artifacts/metrics_history.json"):
        run.storage.write_text(run.path(path), json.dumps(report.history))
    result = MemberResult(
        name=MODEL,
        family=run.spec.families()[MODEL],
        status="SUCCEEDED",
        num_parameters=report.num_parameters,
        best_epoch=report.best_epoch,
        num_epochs=report.num_epochs,
        degenerate=report.degenerate,
        num_skipped_batches=report.num_skipped_batches,
        num_failed_samples=report.num_failed_samples,
        path=f"checkpoints/{MODEL}/trained",
        digests=digests,
        spec_digest=_digest(run, data),
        warnings=[*report.warnings, *task.notes],
    )
    journal.flush()
    return {"result": result.model_dump(mode="json")}


def _learn(
    run: Run,
    data: DataSummary,
    num_cpus: int,
    emit: Callable[..., None],
    store: CheckpointStore,
    **hooks: Any,
) -> tuple[NetworkTask, nn.Module, FitReport]:
    """Make the network that the run's description says, and train it by the guarded loop.

    Args:
        hooks: further fields of FitContext.
    """
    import torch

    from ray_jobs.models.base import FitContext
    from ray_jobs.training import loop

    context = FitContext(
        run.spec.seed, run.spec.objective, num_cpus, emit, checkpoints=store, **hooks
    )
    torch.manual_seed(run.spec.seed)
    task = _make_task(run, data, num_cpus)
    network = task.build(weights=True)
    batches, learning = task.prepare(network)
    return task, network, loop.fit(network, batches, learning, task.validate, context)


def _make_task(run: Run, data: DataSummary, num_cpus: int) -> NetworkTask:
    workload = run.workload
    assert isinstance(workload, NetworkWorkload), run.spec.workload
    device = choose_device(run.spec.resources.device)
    return workload.task(run.spec, data, storage=run.storage, device=device, num_cpus=num_cpus)


def _read_outcome(run: Run) -> MemberResult:
    path = run.path("checkpoints", MODEL, _OUTCOME)
    if not run.storage.exists(path):
        raise RetryableError(
            "the training workers ended without an outcome; the same command with the same "
            "--run-id goes on from the last checkpoint"
        )
    outcome = json.loads(run.storage.read_bytes(path))
    if "result" in outcome:
        return MemberResult.model_validate(outcome["result"])
    kinds = {kind.__name__: kind for kind in _ERRORS}
    raise kinds.get(outcome["error"], JobFailed)(outcome["message"])


def _digest(run: Run, data: DataSummary) -> str:
    parts = (run.spec.digest(*run.spec.TRAINED_BY), data.digest)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
