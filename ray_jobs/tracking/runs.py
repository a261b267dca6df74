"""MLflow runs: a parent for the job, a child a member with its curves and files, one registered
model version.

Everything is logged when it is known, at the end of the job: a tracking server that is slow or down
costs no training.
"""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import PreflightError
from ray_jobs.events import read_events
from ray_jobs.members import read_history
from ray_jobs.monitoring.reference import complete_bundle
from ray_jobs.result import JobResult, MemberResult, Metrics, RegisteredModel
from ray_jobs.run import REPORT, Run
from ray_jobs.sweeping.records import RESULT as SWEEP
from ray_jobs.sweeping.winner import as_trained, read_sweep
from ray_jobs.tracking.registry import (
    BUNDLE,
    CHALLENGER,
    DATA_DIGEST_TAG,
    RUN_ID_TAG,
    TEST_DIGEST_TAG,
    WORKLOAD_TAG,
    answering,
    quieten,
    tracking_uri,
)
from ray_jobs.tracking.signing import (
    DIGEST_TAG,
    KEY_VARIABLE,
    SIGNATURE_TAG,
    Statement,
    index_digest,
    sign,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_REFUSAL = (
    "did not take the run",
    "Everything is trained and stored; the same command with the same --run-id goes on from here.",
)
_LOGGED_FILES = (
    "spec.yaml", "artifacts/ensemble.json", "artifacts/evaluation.json",
    "artifacts/classification_report.json", "artifacts/confusion_matrix.png",
    "artifacts/misclassified.html", SWEEP, "sweep.html",
)  # fmt: skip


def log_run(run: Run, result: JobResult) -> RegisteredModel:
    """Log a finished evaluation; a repeated call finds what the first one registered, or marks what
    it left half logged as FAILED and logs anew.

    A request that is not answered is sent five times within half a minute, or as often as
    MLFLOW_HTTP_REQUEST_MAX_RETRIES says.

    Raises:
        RetryableError: MLflow or its artifact store cannot be reached, or refuses.
    """
    quieten()
    import mlflow

    uri = tracking_uri(run.storage)
    is_embedded = "MLFLOW_TRACKING_URI" not in os.environ  # which the next line sets
    mlflow.set_tracking_uri(uri)
    with answering(uri, *_REFUSAL):
        client = mlflow.MlflowClient(uri)
        model_name = run.spec.tracking.model_name or run.spec.workload
        version = _registered_earlier(client, model_name, run)
        if version is None:
            experiment_id = _experiment(client, run, is_embedded=is_embedded)
            _end_earlier(client, experiment_id, run)
            parent_id = _create_run(client, experiment_id, run.run_id, run, result.started_at, {})
            _log_parent(client, parent_id, run, result)
            if result.ensemble is None:
                _log_only_model(client, parent_id, run, result.members[0])
                _log_trials(client, experiment_id, parent_id, run)
            else:
                for member in result.members:
                    _log_member(client, experiment_id, parent_id, run, member)
            version = _log_model(client, parent_id, model_name, run, result)
        _finish(client, version)
        return version


def log_report(run: Run, model: RegisteredModel) -> None:
    """Put the report beside the run that the model came from.

    Raises:
        RetryableError: as `log_run`.
    """
    import mlflow

    text = run.storage.read_text(run.path(REPORT))
    uri = tracking_uri(run.storage)
    with answering(uri, *_REFUSAL):
        mlflow.MlflowClient(uri).log_text(model.mlflow_run_id, text, REPORT)


def _registered_earlier(client: MlflowClient, model_name: str, run: Run) -> RegisteredModel | None:
    found = client.search_model_versions(
        f"name = '{model_name}' and tags.`{RUN_ID_TAG}` = '{run.run_id}'"
    )
    return _registered(model_name, found[0]) if found else None


def _end_earlier(client: MlflowClient, experiment_id: str, run: Run) -> None:
    """An attempt that was cut off while it was logged must not look like one at work."""
    cut_off = f"tags.`{RUN_ID_TAG}` = '{run.run_id}' and attributes.status = 'RUNNING'"
    for earlier in client.search_runs([experiment_id], cut_off):
        client.set_terminated(earlier.info.run_id, "FAILED")


def _finish(client: MlflowClient, model: RegisteredModel) -> None:
    """Move the alias to the model, unless it has moved past it, and end its run."""
    aliases = client.get_registered_model(model.name).aliases
    if int(aliases.get(CHALLENGER, 0)) < model.version:
        client.set_registered_model_alias(model.name, CHALLENGER, str(model.version))
    if client.get_run(model.mlflow_run_id).info.status == "RUNNING":
        client.set_terminated(model.mlflow_run_id)


def _experiment(client: MlflowClient, run: Run, *, is_embedded: bool) -> str:
    name = run.spec.tracking.experiment or run.spec.workload
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    location = None  # a server has a place of its own for artifacts
    if is_embedded:
        storage = run.storage
        root = storage.local().as_uri() if storage.is_local else storage.uri
        location = f"{root}/mlartifacts/{name}"
    return client.create_experiment(name, artifact_location=location)


def _create_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    run: Run,
    started_at: datetime | None,
    tags: dict[str, str],
) -> str:
    start_time = _milliseconds(started_at)
    tags = {RUN_ID_TAG: run.run_id, WORKLOAD_TAG: run.spec.workload, **tags}
    created = client.create_run(experiment_id, start_time=start_time, tags=tags, run_name=name)
    return created.info.run_id


def _log_parent(client: MlflowClient, run_id: str, run: Run, result: JobResult) -> None:
    data = result.data
    assert data is not None, "only evaluated runs are logged"
    params = {
        "seed": result.seed,
        "objective": f"{result.objective.metric} ({result.objective.mode})",
        "data.source": data.source,
        "data.digest": data.digest,
        **run.workload.params(run, result),
    }
    weights = result.ensemble.weights if result.ensemble else {}
    points = {f"weight.{name}": weight for name, weight in weights.items()}
    _log_batch(client, run_id, params, _points(result.metrics) | points)
    with tempfile.TemporaryDirectory(prefix="emberline-") as scratch:
        for name in _LOGGED_FILES:
            if run.storage.exists(run.path(name)):
                (Path(scratch) / Path(name).name).write_bytes(
                    run.storage.read_bytes(run.path(name))
                )
        client.log_artifacts(run_id, scratch)


def _log_member(
    client: MlflowClient, experiment_id: str, parent_id: str, run: Run, member: MemberResult
) -> None:
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    tags = {MLFLOW_PARENT_RUN_ID: parent_id, "emberline.family": member.family}
    if member.reason:
        tags["emberline.reason"] = member.reason
    run_id = _create_run(client, experiment_id, member.name, run, member.started_at, tags)
    params = run.spec.hyperparameters(member.name)
    curves = _curves(read_history(run, member.name), member.started_at)
    _log_batch(client, run_id, params, _points(member.metrics), curves)
    if member.status == "SUCCEEDED":
        with run.storage.local_folder(run.path("checkpoints", member.name)) as folder:
            client.log_artifacts(run_id, str(folder), "checkpoint")
    end_time = None
    if member.started_at and member.seconds is not None:
        end_time = int((member.started_at.timestamp() + member.seconds) * 1000)
    status = "FINISHED" if member.status == "SUCCEEDED" else "FAILED"
    client.set_terminated(run_id, status, end_time)


def _log_only_model(client: MlflowClient, run_id: str, run: Run, member: MemberResult) -> None:
    """A job that trains one model keeps its curves and files in the run itself."""
    curves = _curves(read_history(run, member.name), member.started_at)
    params = as_trained(run).spec.hyperparameters(member.name)
    _log_batch(client, run_id, params, {}, curves)


def _log_trials(client: MlflowClient, experiment_id: str, parent_id: str, run: Run) -> None:
    """A child for every trial of a sweep, with its hyperparameters and its objective by epoch."""
    from mlflow.entities import Metric
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    sweep = read_sweep(run)
    if sweep is None:
        return
    metric = sweep.objective.metric
    times = _trial_times(run)
    for trial in sweep.trials:
        tags = {
            MLFLOW_PARENT_RUN_ID: parent_id,
            "emberline.trial": trial.id,
            "emberline.trial_status": trial.status,
            "emberline.winner": str(trial.id == sweep.winner).lower(),
            **({"emberline.reason": trial.reason} if trial.reason else {}),
        }
        started, ended = times.get(trial.id, (None, None))
        name = f"{run.run_id}-trial-{trial.id}"
        run_id = _create_run(client, experiment_id, name, run, started, tags)
        clock = _milliseconds(ended) or 0
        curves = [
            Metric(f"val.{metric}", value, clock, epoch)
            for epoch, value in enumerate(trial.history, start=1)
            if value is not None
        ]
        points = {"epochs": float(trial.epochs)}
        if trial.best_value is not None:
            points[f"best.val.{metric}"] = trial.best_value
        _log_batch(client, run_id, trial.config, points, curves)
        status = "FAILED" if trial.status == "FAILED" else "FINISHED"
        client.set_terminated(run_id, status, _milliseconds(ended))


def _trial_times(run: Run) -> dict[str, tuple[datetime, datetime]]:
    """When each trial was first and last heard of."""
    times: dict[str, tuple[datetime, datetime]] = {}
    for event in read_events(run.storage, run.folder):
        if event["event"].startswith("trial_"):
            at = datetime.fromisoformat(event["time"])
            first, _ = times.get(event["trial"], (at, at))
            times[event["trial"]] = (first, at)
    return times


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)


def _log_model(
    client: MlflowClient, run_id: str, model_name: str, run: Run, result: JobResult
) -> RegisteredModel:
    """Log the model as a pyfunc made of code and plain files, and register it."""
    import mlflow

    assert result.data is not None, "only evaluated runs are logged"
    with tempfile.TemporaryDirectory(prefix="emberline-") as scratch:
        folder = Path(scratch) / BUNDLE
        folder.mkdir()
        form = run.workload.write_model(run, result, folder)
        complete_bundle(run, result.data, folder)
        statement = Statement(model_name, run.run_id, index_digest(folder))
        tags = {
            RUN_ID_TAG: run.run_id,
            WORKLOAD_TAG: run.spec.workload,
            DATA_DIGEST_TAG: result.data.digest,
            TEST_DIGEST_TAG: result.data.splits["test"].digest,
            DIGEST_TAG: statement.index_digest,
            **_signature(run, statement),
            **form.tags,
        }
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(form.code),
                artifacts={BUNDLE: str(folder)},
                code_paths=[str(Path(__file__).parents[1])],
                signature=form.signature,
                input_example=form.example,
                pip_requirements=_pinned(form.requirements),
                registered_model_name=model_name,
                tags=tags,  # of the version, too, from the start: another attempt knows it by them
            )
    version = str(info.registered_model_version)
    return _registered(model_name, client.get_model_version(model_name, version))


def _signature(run: Run, statement: Statement) -> dict[str, str]:
    """The tag of the signature; none, with a warning, where no key was given and none can be made:
    the training is done, and the gate will say what is missing."""
    try:
        return {SIGNATURE_TAG: sign(statement)}
    except PreflightError as error:
        if os.environ.get(KEY_VARIABLE):
            raise
        run.journal("register")("warning", message=f"the model is not signed: {error}")
        return {}


def _pinned(packages: tuple[str, ...]) -> list[str]:
    from importlib.metadata import version

    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]


def _registered(name: str, version: Any) -> RegisteredModel:
    return RegisteredModel(
        name=name,
        version=int(version.version),
        uri=f"models:/{name}/{version.version}",
        mlflow_run_id=version.run_id,
    )


def _points(metrics: dict[str, Metrics]) -> dict[str, float]:
    """`val.f1`, `val.f1.low`, ...: only what is known."""
    points = {}
    for split, values in metrics.items():
        for name, metric in values.items():
            points[f"{split}.{name}"] = metric.value
            if metric.low is not None and metric.high is not None:
                points[f"{split}.{name}.low"] = metric.low
                points[f"{split}.{name}.high"] = metric.high
    return points


def _curves(history: list[dict[str, Any]], started_at: datetime | None) -> list[Metric]:
    from mlflow.entities import Metric

    clock = started_at.timestamp() if started_at else 0.0
    curves = []
    for entry in history:
        clock += entry.get("seconds", 0.0)
        for name, value in entry.items():
            if name not in ("epoch", "seconds") and isinstance(value, int | float):
                curves.append(Metric(f"epoch.{name}", value, int(clock * 1000), entry["epoch"]))
    return curves


def _log_batch(
    client: MlflowClient,
    run_id: str,
    params: dict[str, Any],
    points: dict[str, float],
    curves: list[Metric] = [],  # noqa: B006
) -> None:
    import time

    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in points.items()] + curves
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
