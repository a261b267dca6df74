"""Kubeflow Pipelines: what its API is asked for, and its answers parsed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.compilation import Compiled
from pipelines.kubeflow_api import Api, Conflict
from ray_jobs.errors import SpecError
from ray_jobs.kubeflow_spec import STEPS, KubeflowSpec
from ray_jobs.result import Status

ENDPOINT = "KF_PIPELINES_ENDPOINT"
UNITS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}  # in seconds, the longest first
_STATUSES: dict[str, Status] = {
    "PENDING": "PENDING",
    "RUNNING": "RUNNING",
    "PAUSED": "RUNNING",
    "CANCELING": "RUNNING",
    "SUCCEEDED": "SUCCEEDED",
    "SKIPPED": "SUCCEEDED",
    "FAILED": "FAILED",
    "CANCELED": "STOPPED",
}
_ENDED: tuple[Status, ...] = ("SUCCEEDED", "FAILED", "STOPPED")
_WORST_FIRST = ("FAILED", "CANCELED", "CANCELING", "RUNNING", "PENDING", "PAUSED", "SUCCEEDED")
_STEP = re.compile(f"({'|'.join(STEPS)})(-[0-9]+)?".replace("_", "-"))


@dataclass(frozen=True)
class Step:
    """A step of a run, as far as KFP has come; in a loop, all of its items."""

    name: str
    state: str  # KFP's own word, of the item that is worst off
    error: str | None = None
    num: int = 1
    num_ended: int = 0

    def __str__(self) -> str:
        items = f", {self.num_ended} of {self.num}" if self.num > 1 else ""
        return f"{self.state.lower()}{items}"


@dataclass(frozen=True)
class PipelineRun:
    """A run of a pipeline."""

    id: str
    name: str
    status: Status
    state: str  # KFP's own word
    created_at: datetime
    parameters: Mapping[str, Any]
    steps: tuple[Step, ...] = ()
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED


@dataclass(frozen=True)
class Version:
    """A compiled pipeline that KFP has."""

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool  # uploaded now


@dataclass(frozen=True)
class Trigger:
    """When a schedule starts a run: a cron expression of six fields, the first of them seconds, or
    an interval."""

    cron: str | None = None
    every_s: int | None = None

    def __str__(self) -> str:
        if self.cron:
            return f"cron {self.cron}"
        assert self.every_s is not None
        unit, seconds = next(item for item in UNITS.items() if self.every_s % item[1] == 0)
        return f"every {self.every_s // seconds}{unit}"


@dataclass(frozen=True)
class Schedule:
    """A recurring run."""

    id: str
    name: str
    is_enabled: bool
    trigger: Trigger
    description: str
    created_at: datetime


class Kubeflow:
    """Kubeflow Pipelines at one endpoint. Every method raises as `Api.ask`."""

    def __init__(self, spec: KubeflowSpec, environ: Mapping[str, str] = os.environ):
        """
        Raises:
            SpecError: no endpoint is named.
            PreflightError: the token's file cannot be read.
        """
        endpoint = spec.endpoint or environ.get(ENDPOINT, "").rstrip("/")
        if not endpoint:
            raise SpecError(
                "where is Kubeflow Pipelines? Set kubeflow.endpoint, or --endpoint "
                f"http://HOST:8888, or {ENDPOINT}"
            )
        self.endpoint = endpoint
        self.ui = spec.ui or endpoint
        self.namespace = spec.namespace
        self._service_account = spec.service_account
        self._api = Api(endpoint, spec.token_path, environ)

    def link(self, run_id: str) -> str:
        """Where the UI shows a run."""
        return f"{self.ui}/#/runs/details/{run_id}"

    def schedule_link(self, schedule_id: str) -> str:
        return f"{self.ui}/#/recurringrun/details/{schedule_id}"

    def experiment(self, name: str) -> str:
        """The id of the experiment, which is made if there is none."""
        found = self.find_experiment(name)
        if found is not None:
            return found
        body = self._api.models.V2beta1Experiment(display_name=name, namespace=self.namespace)
        try:
            made = self._api.ask(
                self._api.experiments.experiment_service_create_experiment, experiment=body
            )
        except Conflict:  # another process made it
            again = self.find_experiment(name)
            if again is None:
                raise
            return again
        return str(made.experiment_id)

    def find_experiment(self, name: str) -> str | None:
        """The id of the experiment, if there is one."""
        for one in self._api.listing(
            self._api.experiments.experiment_service_list_experiments,
            "experiments",
            name,
            namespace=self.namespace,
        ):
            return str(one.experiment_id)
        return None

    def upload(self, compiled: Compiled) -> Version:
        """The version with this content, uploaded unless it is there."""
        name = compiled.pipeline_name
        version_name = f"{name}-{compiled.digest[:12]}"
        pipeline_id = self._pipeline(name)
        found = self._find_version(pipeline_id, version_name)
        if found is not None:
            return Version(pipeline_id, found, version_name, is_new=False)
        with TemporaryDirectory(prefix="emberline-") as scratch:
            path = Path(scratch) / f"{version_name}.yaml"
            path.write_text(compiled.text)
            try:
                made = self._api.ask(
                    self._api.uploads.upload_pipeline_version,
                    str(path),
                    name=version_name,
                    pipelineid=pipeline_id,
                    description=f"sha256 {compiled.digest}",
                )
            except Conflict:
                found = self._find_version(pipeline_id, version_name)
                if found is None:
                    raise
                return Version(pipeline_id, found, version_name, is_new=False)
        return Version(pipeline_id, str(made.pipeline_version_id), version_name, is_new=True)

    def _pipeline(self, name: str) -> str:
        found = self._find_pipeline(name)
        if found is not None:
            return found
        body = self._api.models.V2beta1Pipeline(
            display_name=name, name=name, namespace=self.namespace
        )
        try:
            made = self._api.ask(
                self._api.pipelines.pipeline_service_create_pipeline, pipeline=body
            )
        except Conflict:
            again = self._find_pipeline(name)
            if again is None:
                raise
            return again
        return str(made.pipeline_id)

    def _find_pipeline(self, name: str) -> str | None:
        api = self._api.pipelines.pipeline_service_list_pipelines
        for one in self._api.listing(api, "pipelines", name, namespace=self.namespace):
            return str(one.pipeline_id)
        return None

    def _find_version(self, pipeline_id: str, name: str) -> str | None:
        api = self._api.pipelines.pipeline_service_list_pipeline_versions
        for one in self._api.listing(api, "pipeline_versions", name, pipeline_id=pipeline_id):
            return str(one.pipeline_version_id)
        return None

    # Runs

    def runs(self, name: str, experiment_id: str) -> list[PipelineRun]:
        """The runs of this name, the first made first."""
        api = self._api.runs.run_service_list_runs
        found = self._api.listing(api, "runs", name, experiment_id=experiment_id)
        return sorted(map(_run, found), key=lambda run: (run.created_at, run.id))

    def run(self, run_id: str) -> PipelineRun:
        return _run(self._api.ask(self._api.runs.run_service_get_run, run_id=run_id))

    def create_run(
        self, name: str, version: Version, experiment_id: str, parameters: Mapping[str, Any]
    ) -> PipelineRun:
        body = self._api.models.V2beta1Run(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=self._reference(version),
            runtime_config=self._api.models.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=self._service_account,
        )
        return _run(self._api.ask(self._api.runs.run_service_create_run, run=body))

    def retry(self, run_id: str) -> None:
        """Carry out again the steps of a run that have failed."""
        self._api.ask(self._api.runs.run_service_retry_run, run_id=run_id)

    def terminate(self, run_id: str) -> None:
        self._api.ask(self._api.runs.run_service_terminate_run, run_id=run_id)

    def delete_run(self, run_id: str) -> None:
        self._api.ask(self._api.runs.run_service_delete_run, run_id=run_id)

    # Schedules

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """All of the namespace, or those of this name; the first made first."""
        api = self._api.schedules.recurring_run_service_list_recurring_runs
        found = self._api.listing(api, "recurring_runs", name, namespace=self.namespace)
        return sorted(map(_schedule, found), key=lambda one: (one.created_at, one.id))

    def create_schedule(
        self,
        name: str,
        version: Version,
        experiment_id: str,
        parameters: Mapping[str, Any],
        *,
        trigger: Trigger,
        description: str,
        is_enabled: bool,
    ) -> Schedule:
        """A run never starts while the one before is at work, and missed ones are not made up."""
        models = self._api.models
        when = (
            models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=trigger.cron))
            if trigger.cron
            else models.V2beta1Trigger(
                periodic_schedule=models.V2beta1PeriodicSchedule(
                    interval_second=str(trigger.every_s)
                )
            )
        )
        body = models.V2beta1RecurringRun(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            namespace=self.namespace,
            pipeline_version_reference=self._reference(version),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=self._service_account,
            max_concurrency="1",
            no_catchup=True,
            trigger=when,
            mode="ENABLE" if is_enabled else "DISABLE",
        )
        api = self._api.schedules.recurring_run_service_create_recurring_run
        return _schedule(self._api.ask(api, recurring_run=body))

    def delete_schedule(self, schedule_id: str) -> None:
        api = self._api.schedules.recurring_run_service_delete_recurring_run
        self._api.ask(api, recurring_run_id=schedule_id)

    def enable(self, schedule_id: str, *, on: bool) -> None:
        api = self._api.schedules
        ask = (
            api.recurring_run_service_enable_recurring_run
            if on
            else api.recurring_run_service_disable_recurring_run
        )
        self._api.ask(ask, recurring_run_id=schedule_id)

    def _reference(self, version: Version) -> Any:
        return self._api.models.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        )


def _run(raw: Any) -> PipelineRun:
    steps = _steps((raw.run_details.task_details if raw.run_details else None) or ())
    config = raw.runtime_config
    state = raw.state or "PENDING"
    return PipelineRun(
        raw.run_id,
        raw.display_name or "",
        _STATUSES.get(state, "PENDING"),
        state,
        raw.created_at or datetime.now(UTC),
        (config.parameters if config else None) or {},
        steps,
        _message(raw.error),
    )


def _steps(nodes: Sequence[Any]) -> tuple[Step, ...]:
    """The steps among the nodes of Argo's workflow, most of which are KFP's own."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        if _STEP.fullmatch(node.display_name or ""):
            found.setdefault(node.display_name, []).append(node)
    steps = []
    for name, items in found.items():
        worst = min(items, key=lambda node: _rank(node.state))
        num_ended = sum(_STATUSES.get(node.state, "PENDING") in _ENDED for node in items)
        steps.append(
            Step(name, worst.state or "PENDING", _message(worst.error), len(items), num_ended)
        )
    return tuple(steps)


def _rank(state: str | None) -> int:
    return _WORST_FIRST.index(state) if state in _WORST_FIRST else len(_WORST_FIRST)


def _schedule(raw: Any) -> Schedule:
    cron = raw.trigger.cron_schedule if raw.trigger else None
    periodic = raw.trigger.periodic_schedule if raw.trigger else None
    return Schedule(
        raw.recurring_run_id,
        raw.display_name or "",
        (raw.status or raw.mode) in ("ENABLED", "ENABLE"),
        Trigger(cron.cron if cron else None, int(periodic.interval_second) if periodic else None),
        raw.description or "",
        raw.created_at or datetime.now(UTC),
    )


def _message(error: Any) -> str | None:
    return error.message if error is not None and error.message else None
