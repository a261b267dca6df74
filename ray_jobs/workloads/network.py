"""What workloads that train one network have in common."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import ValidationError, model_validator

from ray_jobs.checks import counted
from ray_jobs.result import DataSummary, JobResult
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.space import check_space
from ray_jobs.sweeping.spec import SweepSpec
from ray_jobs.training.spec import TrainSpec
from ray_jobs.workloads.base import Workload

if TYPE_CHECKING:
    import torch

    from ray_jobs.run import Run
    from ray_jobs.training.task import NetworkTask

MODEL = "model"  # the name of the one member of such a job
VAL, TEST = "artifacts/predictions-val.parquet", "artifacts/predictions-test.parquet"
P = TypeVar("P")


class NetworkSpec(JobSpec):
    """The job description of one network, and of a sweep over its hyperparameters."""

    UNIT: ClassVar[str]  # what the network sees one of at a time
    # What trials may differ in; other sections would need other data, or another yardstick.
    SWEPT: ClassVar[tuple[str, ...]] = ("model", "train")
    TRAINED_BY: ClassVar[tuple[str, ...]] = ("model", "train", "objective", "seed")

    train: TrainSpec
    sweep: SweepSpec | None = None  # absent from a run that trains without one

    @model_validator(mode="after")
    def _sweep_fits(self) -> NetworkSpec:
        if self.sweep is None:
            return self
        metric = self.objective.metric
        if self.sweep.metric not in (None, metric):
            raise ValueError(
                f"sweep.metric is {self.sweep.metric}, but objective.metric is {metric}, which "
                "early stopping, checkpoints, the sweep and the gate all read; leave sweep.metric "
                "out"
            )
        if "train.epochs" in self.sweep.space:
            raise ValueError(
                "sweep.space has train.epochs, but how long a trial trains is what the sweep "
                "decides; set sweep.max_epochs"
            )
        sections = {name: getattr(self, name) for name in self.SWEPT}
        check_space(self.sweep.space, {**sections, "train": self._trial_recipe(self.sweep)})
        return self

    def _trial_recipe(self, sweep: SweepSpec) -> TrainSpec:
        """How a trial learns, but for what it tries."""
        raw = {**self.train.model_dump(mode="json"), "epochs": sweep.max_epochs}
        try:
            return TrainSpec.model_validate(raw)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ValueError(
                f"a trial trains for sweep.max_epochs={sweep.max_epochs} epochs, and train.{fault}"
            ) from None

    @property
    def sweeps(self) -> bool:
        return self.sweep is not None

    def families(self) -> dict[str, str]:
        return {MODEL: self.workload}

    def summary(self) -> dict[str, str]:
        """What a reader of a plan wants to know of the network and how it learns, a line each."""
        train = self.train
        epochs = self.sweep.max_epochs if self.sweep else train.epochs
        return {
            "recipe": f"{train.optimizer} with learning_rate {train.learning_rate:g}, "
            f"{train.schedule}, batches of {train.batch_size}, at most {counted(epochs, 'epoch')}"
        }

    def hyperparameters(self, member: str) -> dict[str, Any]:
        return {
            f"{name}.{key}": value
            for name in self.SWEPT
            for key, value in getattr(self, name).model_dump(mode="json").items()
        }


class NetworkWorkload(Workload):
    """Prepare, check everything once, sweep if asked, train, test once, register."""

    stops_when_asked = True

    @abstractmethod
    def task(
        self,
        spec: Any,
        data: DataSummary,
        *,
        storage: Storage,
        device: torch.device,
        num_cpus: int,
    ) -> NetworkTask:
        """What is trained, for a worker with `num_cpus` CPUs."""

    def work(self, run: Run) -> None:
        from ray_jobs.evaluate import evaluate
        from ray_jobs.fit import fit
        from ray_jobs.preflight import preflight
        from ray_jobs.prepare import prepare
        from ray_jobs.register import register

        prepare(run)
        preflight(run)
        if run.spec.sweeps:
            from ray_jobs.sweep import sweep

            sweep(run)
        fit(run)
        evaluate(run)
        register(run)

    def params(self, run: Run, result: JobResult) -> dict[str, Any]:
        return {}  # the hyperparameters are all there is

    def predict_test(self, run: Run, read: Callable[[Storage, str], P]) -> P:
        """The test predictions: those of an earlier attempt, or new ones, stored."""
        from ray_jobs.fit import load_task
        from ray_jobs.prepare import read_data

        path = run.path(TEST)
        if not run.storage.exists(path):
            task, network = load_task(run, read_data(run))
            predictions = task.predict(network, "test")
            predictions.write(run.storage, path)
            for note in task.notes:
                run.journal("evaluate")("warning", message=note)
        return read(run.storage, path)

    def copy_model(self, run: Run, result: JobResult, folder: Path) -> None:
        """Copy the trained network's files into `folder`."""
        (member,) = result.members
        with run.storage.local_folder(run.path("checkpoints", MODEL, "trained")) as source:
            for name in member.digests:
                shutil.copyfile(source / name, folder / name)
