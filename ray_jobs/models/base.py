"""What a member of an ensemble is: a configuration, and a model that fits, predicts, saves and
loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ray_jobs.data.dataset import Rows
from ray_jobs.metrics import objective_value
from ray_jobs.result import Objective

if TYPE_CHECKING:
    from ray_jobs.training.checkpoints import CheckpointStore


class MemberConfig(BaseModel):
    """Base of the families' hyperparameters; each family declares its own beside its model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str

    def build(self) -> Member:
        """The unfitted model."""
        raise NotImplementedError

    def estimate_seconds(self, num_train: int, num_val: int) -> float:
        """About how long a fit takes on one core of a 2020s server, for 18 features; for plans
        only."""
        raise NotImplementedError


def _ignore(event: str, **fields: Any) -> None:
    """The journal of a fit that nobody watches."""


@dataclass(frozen=True)
class FitContext:
    """What a fit may use beside its data: everything comes from here, nothing from globals."""

    seed: int
    objective: Objective
    num_threads: int = 1
    emit: Callable[..., None] = _ignore  # emit(event, **fields): progress for the journal
    checkpoints: CheckpointStore | None = None  # to go on from, if the fit is cut off
    stop_requested: Callable[[], bool] = lambda: False  # looked at about once a second
    kept_epochs: frozenset[int] = frozenset()  # whose ends get a checkpoint in any case
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None  # after its checkpoint


@dataclass
class FitReport:
    """What a fit has to say beside the fitted model."""

    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch
    best_epoch: int | None = None
    num_epochs: int | None = None
    num_parameters: int | None = None
    degenerate: bool = False
    num_skipped_batches: int = 0
    num_failed_samples: int = 0
    warnings: list[str] = field(default_factory=list)


class Member(Protocol):
    """A binary classifier of rows that can see each row's history within its group."""

    def fit(self, train: Rows, val: Rows, context: FitContext) -> FitReport: ...

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        """P(label = 1), shape [N]."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted model into an existing folder. No pickle."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. No code of the file's own is run."""
        ...


def validation_metrics(val: Rows, p: NDArray[np.float64], objective: Objective) -> dict[str, float]:
    """What every epoch measures: the validation loss, in nats, and the objective."""
    return {
        "val_loss": objective_value(val.y, p, "log_loss"),
        objective.metric: objective_value(val.y, p, objective.metric),
    }
