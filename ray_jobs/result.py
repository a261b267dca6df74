"""JobResult: what came out of a run. Written last and atomically as `result.json`; read back
only through here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MetricValue(_Record):
    """A metric and its bootstrap 95 % interval. `low` and `high` are absent where none can be
    computed."""

    value: Finite
    low: Finite | None = None
    high: Finite | None = None


Metrics = dict[str, MetricValue]  # a metric that could not be computed is absent, never zero
SplitMetrics = dict[str, Metrics]  # "val" and "test" -> metrics


class Objective(_Record):
    """The one number that early stopping, ensemble selection and the promotion gate all read."""

    metric: str
    mode: Literal["max", "min"]


class MemberResult(_Record):
    """One member of an ensemble, with a status of its own: a failed member does not fail the
    run."""

    name: str
    family: str
    status: Status
    reason: str | None = None  # why it FAILED
    metrics: SplitMetrics = {}
    threshold: Finite | None = None  # decision threshold chosen on validation
    num_parameters: int | None = None
    best_epoch: int | None = None
    num_epochs: int | None = None
    degenerate: bool = False  # its metrics stood still; training was stopped
    num_skipped_batches: int = 0  # steps not taken: not finite, or nothing usable in the batch
    num_failed_samples: int = 0  # left out of their batches: unreadable, or of another shape
    seconds: Finite | None = None
    started_at: datetime | None = None
    path: str | None = None  # folder of its files, relative to the run
    digests: dict[str, str] = {}  # sha256 of each of those files
    spec_digest: str | None = None  # of its configuration and data, so that a resumed run can tell
    warnings: list[str] = []


class Candidate(_Record):
    """One ensemble strategy, cross-validated on the validation split."""

    strategy: str
    objective: Finite
    objective_stderr: Finite
    log_loss: Finite
    log_loss_stderr: Finite
    chosen: bool = False


class EnsembleResult(_Record):
    """How the members were combined."""

    strategy: str  # the one chosen, e.g. "greedy" or "single:random_forest"
    weights: dict[str, Finite]  # per member; for stacking its coefficients
    calibration: str
    threshold: Finite
    candidates: list[Candidate] = []


class ColumnLeak(_Record):
    """A column that gives the label, or another target, away."""

    column: str
    target: str | None = None  # what it gives away, where there is more than the label
    auc: Finite | None = (
        None  # of a shallow tree on this column alone, on rows it was not fitted on
    )
    refused: bool
    evidence: str


class DuplicateReport(_Record):
    """Rows, or whole groups of rows, that stand in the data more than once."""

    num_exact: int = 0  # rows that repeat another row in every feature
    num_near: int = 0  # rows that repeat another in all but `differing_columns`
    differing_columns: list[str] = []
    merged_groups: list[list[str]] = []  # groups that repeat each other, kept in one split
    num_across_splits: int = 0  # test or val rows whose features also stand in train


class LeakageReport(_Record):
    """What could make a score too good, and what was done about it."""

    duplicates: DuplicateReport = DuplicateReport()
    columns: list[ColumnLeak] = []
    excluded_columns: dict[
        str, str
    ] = {}  # column -> why it was left out (counter, clock, empty, ...)
    notes: list[str] = []


class SplitSummary(_Record):
    num_rows: int
    num_groups: int
    num_positive: int | None = None  # of a label that is 0 or 1
    class_counts: dict[str, int] = {}  # rows of each class, where there are more than two
    digest: str  # sha256 of the sorted row ids


class ScanSummary(_Record):
    """What reading every picture once has found."""

    manifest: str  # path of the list of all pictures, relative to the storage root
    num_files: int
    num_usable: int
    left_out: dict[str, int] = {}  # reason -> pictures
    converted: dict[str, int] = {}  # what was mended on reading (cmyk, exif-rotated) -> pictures


class DataSummary(_Record):
    """Where the rows came from and how they were split."""

    source: str
    path: str  # of the prepared rows, relative to the storage root
    digest: str  # sha256 of all prepared rows
    features: list[str] = []
    label: str
    classes: list[str] = []  # in the order of their numbers, where there are more than two
    scan: ScanSummary | None = None  # of pictures
    splits: dict[str, SplitSummary]
    grouped_by: str | None = None
    num_dropped: int = 0  # rows left out under data.nonfinite
    num_imputed: int = 0  # cells filled in under data.nonfinite
    num_added: int = 0  # rows of data.added, which all went to train
    num_withheld: int = 0  # rows of data.added left out, for val or test has them
    leakage: LeakageReport = LeakageReport()
    ceiling: dict[
        str, dict[str, Finite]
    ] = {}  # split -> metric of the true probability, where known
    warnings: list[str] = []


class ClassScores(_Record):
    """One class of a classifier on one split. A score that the rows do not define is absent."""

    name: str
    support: int  # rows of this class
    precision: Finite | None = None
    recall: Finite | None = None
    f1: Finite | None = None


class SweepSummary(_Record):
    """The sweep that a model's hyperparameters come from; all of it is in artifacts/sweep.json."""

    scheduler: str
    num_trials: int
    num_failed: int
    num_stopped: int  # parked or stopped before their last epoch
    num_epochs: int  # spent by all trials
    num_full_epochs: int  # that training every trial in full would have taken
    winner: str
    config: dict[str, bool | int | float | str]  # the winner's: dotted key -> value
    value: Finite  # its best objective on validation


class RegisteredModel(_Record):
    name: str
    version: int
    uri: str
    mlflow_run_id: str


class JobResult(_Record):
    """Everything a run has to say. Missing numbers are missing."""

    schema_version: Literal[1] = 1
    run_id: str
    workload: str
    status: Status
    reason: str | None = None
    objective: Objective
    seed: int
    metrics: SplitMetrics = {}
    classes: dict[str, list[ClassScores]] = {}  # "val" and "test" -> each class
    rivals: dict[str, SplitMetrics] = {}  # what stands beside the model: name -> split -> metrics
    members: list[MemberResult] = []  # the models trained: of an ensemble all, else the one
    sweep: SweepSummary | None = None
    ensemble: EnsembleResult | None = None
    data: DataSummary | None = None
    model: RegisteredModel | None = None
    versions: dict[str, str] = {}  # package -> version; "code" is the git commit where known
    seconds: dict[str, Finite] = {}  # phase -> wall time
    num_skipped_batches: int = 0
    warnings: list[str] = []
    started_at: datetime
    ended_at: datetime | None = None

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, exclude_none=True)


def parse_member_result(text: str | bytes, *, name: str, family: str) -> MemberResult:
    """Read a member's result back. What cannot be parsed becomes FAILED with the reason, never a
    guess."""
    try:
        result = MemberResult.model_validate_json(text)
    except ValidationError as error:
        return MemberResult(
            name=name, family=family, status="FAILED", reason=f"malformed result: {_first(error)}"
        )
    if result.name != name:
        reason = f"malformed result: it is named {result.name!r}, expected {name!r}"
        return MemberResult(name=name, family=family, status="FAILED", reason=reason)
    return result


def parse_result(text: str | bytes, *, where: str) -> JobResult:
    """Read a `result.json`.

    Raises:
        ValueError: the text is not a JobResult; the message names `where` and the first fault.
    """
    try:
        return JobResult.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{where} is not a result of this version: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "document"
    return f"{place}: {fault['msg']}"
