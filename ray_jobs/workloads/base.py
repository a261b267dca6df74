"""What a workload is: its job description, and what differs between workloads in a job's steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ray_jobs.result import DataSummary, JobResult, MemberResult
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

    from ray_jobs.run import Run

COMBINE = "_combine"  # the part of a job that is left when its members are fitted


@dataclass(frozen=True)
class ModelForm:
    """How MLflow is to call a model: what `Workload.write_model` leaves beside its files."""

    code: Path  # models-from-code: a file that calls mlflow.models.set_model
    signature: ModelSignature
    example: Any  # an input that the model takes
    requirements: tuple[str, ...]  # packages that it needs, without versions
    tags: dict[str, str]


def draw(num_rows: int, num: int, seed: int) -> NDArray[np.int64]:
    """At most `num` different ones of `num_rows`, ascending."""
    import numpy as np

    chosen = np.random.default_rng(seed).choice(num_rows, min(num, num_rows), replace=False)
    return np.sort(chosen)


@dataclass(frozen=True)
class Request:
    """A row of a split, as the scoring app takes it."""

    media_type: str
    body: bytes
    group: int  # rows of one group were recorded together


class Workload(ABC):
    """One kind of job. Its methods import what they need when they are called."""

    spec: ClassVar[type[JobSpec]]
    preparation: ClassVar[str]  # module:function that makes the dataset of a spec's `data`
    # Rows of train and of test that are kept with a model, for live ones to be compared with.
    num_reference: ClassVar[tuple[int, int]] = (2000, 500)
    stops_when_asked: ClassVar[bool] = False  # Run.request_stop() ends it with a checkpoint

    def prepare(
        self, spec: Any, *, storage: Storage, num_workers: int, emit: Callable[..., None]
    ) -> DataSummary:
        """Make the dataset that a spec asks for, or find it made already.

        Raises:
            DataError: the data cannot be used as the spec asks.
        """
        module, _, function = self.preparation.partition(":")
        return getattr(import_module(module), function)(
            spec.data,
            workload=spec.workload,
            seed=spec.seed,
            storage=storage,
            num_workers=num_workers,
            emit=emit,
        )

    @abstractmethod
    def work(self, run: Run) -> None:
        """All steps of the job, in this process. The last one writes the SUCCEEDED result."""

    def train_member(self, run: Run, name: str) -> MemberResult:
        """Prepare, and fit one member, in this process: a part of the job, which may be carried out
        beside the others.

        Raises:
            DataError: the data cannot be used as the spec asks.
        """
        raise NotImplementedError(f"{run.spec.workload} has no members")

    def fail_member(self, run: Run, name: str, reason: str, since: datetime | None) -> None:
        """Note that a member was not fitted, if the job for it, made at `since`, left no word."""
        raise NotImplementedError(f"{run.spec.workload} has no members")

    def combine(self, run: Run) -> None:
        """The steps that are left when every member has been fitted or has failed. The last one
        writes the SUCCEEDED result."""
        raise NotImplementedError(f"{run.spec.workload} has no members")

    @abstractmethod
    def score(self, run: Run, members: list[MemberResult]) -> dict[str, Any]:
        """Read the test split, once: the fields of JobResult that come of it.

        A repeated step scores the predictions that the first one stored.
        """

    @abstractmethod
    def render(self, run: Run, result: JobResult) -> str:
        """The report, HTML, from a result and however little the run has left."""

    @abstractmethod
    def params(self, run: Run, result: JobResult) -> dict[str, Any]:
        """What MLflow keeps as parameters beside seed, objective and data."""

    @abstractmethod
    def write_model(self, run: Run, result: JobResult, folder: Path) -> ModelForm:
        """Write the finished model into an empty folder. No pickle."""

    @abstractmethod
    def requests(self, run: Run, data: DataSummary, split: str, num: int) -> Iterator[Request]:
        """At most `num` rows of a split, drawn at random by the run's seed, in their own order.

        Raises:
            DataError: the dataset's files are damaged or gone.
        """

    def example(self, run: Run, data: DataSummary) -> Request:
        """A row of test, which a deployed model is asked for.

        Raises:
            DataError: the dataset's files are damaged or gone.
        """
        return next(self.requests(run, data, "test", 1))
