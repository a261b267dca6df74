"""What workloads that train one network have in common."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_jobs.result import DataSummary, JobResult
from ray_jobs.storage import Storage
from ray_jobs.workloads.base import Workload

if TYPE_CHECKING:
    import torch

    from ray_jobs.run import Run
    from ray_jobs.training.task import NetworkTask

MODEL = "model"  # the name of the one member of such a job
VAL, TEST = "artifacts/predictions-val.parquet", "artifacts/predictions-test.parquet"
P = TypeVar("P")


class NetworkWorkload(Workload):
    """Prepare, check everything once, train, test once, register."""

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
