"""Reference: what a version's features looked like in training and what it predicted of rows it was
not trained on, kept among its files, for live traffic to be compared with.

Shapes: N values, K indicators, E edges.

Source: L. Kish, Survey Sampling (1965), section 8.2 (the design effect of clustered samples).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import JobFailed
from ray_jobs.models.bundle_files import add_files
from ray_jobs.monitoring.observation import Observation
from ray_jobs.result import DataSummary
from ray_jobs.serving.example import EXAMPLE, record_example
from ray_jobs.serving.scorer import Scorer

if TYPE_CHECKING:
    from ray_jobs.run import Run
    from ray_jobs.workloads.base import Request

REFERENCE = "reference.json"
_NUM_QUANTILES = 200  # of a feature: its distribution function to 1/400
_NUM_BINS = 10
_MIN_GROUP = 1.5  # rows drawn, on average over rows: with fewer groups tell nothing
_DIGITS = 6  # of a number: what a client rounds or a float32 adds is no difference

Floats = NDArray[np.float64]


class Numbers(BaseModel):
    """Values of a feature or an output that is a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["numbers"] = "numbers"
    num: int  # values, the missing ones among them
    num_missing: int
    effective_size: float  # independent values that would say as much as those there are
    # By how much whole groups, one after another, raise a share's variance; None: rows stand alone.
    group_effect: float | None
    low: float  # of the values: NaN is none
    high: float
    quantiles: tuple[float, ...]  # evenly spaced, ascending; none where all are missing
    edges: tuple[float, ...]  # E: a bin ends at each, and one more follows
    shares: tuple[float, ...]  # E + 1, of the values

    @property
    def missing_share(self) -> float:
        return self.num_missing / max(self.num, 1)


class Labels(BaseModel):
    """Values of an output that is a label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["labels"] = "labels"
    num: int
    effective_size: float
    group_effect: float | None
    counts: dict[str, int]


Distribution = Annotated[Numbers | Labels, Field(discriminator="kind")]


class Reference(BaseModel):
    """Of a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: dict[str, Distribution]  # of rows of train
    outputs: dict[str, Distribution]  # of predictions for rows of test


def complete_bundle(run: Run, data: DataSummary, folder: Path) -> None:
    """Add its example and its reference to a bundle that is otherwise finished.

    Raises:
        JobFailed: a file of it is missing or altered.
        DataError: the rows it was trained on cannot be read any more.
    """
    from ray_jobs.serving.model import load_model

    workload, scorer = run.workload, load_model(folder).scorer
    asked = workload.example(run, data)
    example = record_example(scorer, asked.media_type, asked.body)
    num_train, num_test = workload.num_reference
    reference = make_reference(
        scorer,
        workload.requests(run, data, "train", num_train),
        workload.requests(run, data, "test", num_test),
        {name: split.num_rows for name, split in data.splits.items()},
    )
    contents = {EXAMPLE: example.to_json(), REFERENCE: reference.model_dump_json()}
    add_files(folder, {name: content.encode() for name, content in contents.items()})


def make_reference(
    scorer: Scorer[Any, Any],
    train: Iterable[Request],
    test: Iterable[Request],
    num_rows: Mapping[str, int],
) -> Reference:
    """Of the last row of each request of train, and of the last prediction for each of test.

    Args:
        num_rows: of the splits "train" and "test", from which the requests were drawn.
    """
    features, feature_groups = _columns(
        (observation.features, group) for observation, group in _observe(scorer, train, False)
    )
    outputs, output_groups = _columns(
        (observation.outputs, group) for observation, group in _observe(scorer, test, True)
    )
    return Reference(
        features={
            name: describe(values, feature_groups, num_rows["train"])
            for name, values in features.items()
        },
        outputs={
            name: describe(values, output_groups, num_rows["test"])
            for name, values in outputs.items()
        },
    )


def read_reference(bundle: Path) -> Reference:
    """The reference of a bundle whose files are known to be whole.

    Raises:
        JobFailed: it has none, or none that this version reads.
    """
    try:
        return Reference.model_validate_json((bundle / REFERENCE).read_bytes())
    except FileNotFoundError:
        cause = f"has no {REFERENCE} to compare with"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        cause = f"has a malformed {REFERENCE} ({place}: {first['msg']})"
    raise JobFailed(f"the model {cause}; train it again with this version")


def _observe(
    scorer: Scorer[Any, Any], requests: Iterable[Request], is_scored: bool
) -> Iterator[tuple[Observation, int]]:
    waiting = iter(requests)
    while batch := list(islice(waiting, scorer.limits.max_queue)):
        inputs = [scorer.parse(request.body, request.media_type) for request in batch]
        answers = _score(scorer, inputs) if is_scored else [None] * len(inputs)
        for one, answer, request in zip(inputs, answers, batch, strict=True):
            yield scorer.observe(one, answer), request.group


def _score(scorer: Scorer[Any, Any], inputs: Sequence[Any]) -> list[Any]:
    at_once = max(1, scorer.limits.max_batch_rows // max(map(len, inputs)))
    answers: list[Any] = []
    for start in range(0, len(inputs), at_once):
        answers += scorer.score(inputs[start : start + at_once])
    return answers


def _columns(
    rows: Iterable[tuple[Any, int]],
) -> tuple[dict[str, list[Any]], NDArray[np.int64]]:
    """The last value of each observation, by name, and its group."""
    columns: dict[str, list[Any]] = {}
    groups = []
    for values, group in rows:
        groups.append(group)
        for name, of_rows in values.items():
            columns.setdefault(name, []).append(of_rows[-1])
    return columns, np.array(groups, np.int64)


# One feature or output


def describe(values: Sequence[Any], group: NDArray[np.int64], num_rows: int) -> Numbers | Labels:
    """The distribution of values [N], drawn from `num_rows`, which are clustered in groups [N]."""
    if any(isinstance(value, str) for value in values):
        counts = Counter(values)
        indicators = np.array([[value == label for label in counts] for value in values])
        effect = design_effect(indicators, group)
        return Labels(
            num=len(values),
            effective_size=len(values) / effect,
            group_effect=_of_whole_groups(effect, group, num_rows),
            counts=dict(counts.most_common()),
        )
    x = numbers(values)
    is_known = ~np.isnan(x)
    known, num_missing = x[is_known], int((~is_known).sum())
    if not len(known):
        return Numbers(
            num=len(x), num_missing=num_missing, effective_size=0.0, group_effect=None, low=0.0,
            high=0.0, quantiles=(), edges=(), shares=(),
        )  # fmt: skip
    edges = np.unique(_quantiles(known, np.arange(1, _NUM_BINS) / _NUM_BINS))
    effect = design_effect(known[:, None] <= edges, group[is_known])
    return Numbers(
        num=len(x),
        num_missing=num_missing,
        effective_size=len(known) / effect,
        group_effect=_of_whole_groups(effect, group, num_rows),
        low=known.min(),
        high=known.max(),
        quantiles=tuple(_quantiles(known, (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES)),
        edges=tuple(edges),
        shares=tuple(bin_counts(known, edges) / len(known)),
    )


def numbers(values: Sequence[Any]) -> Floats:
    """Values as they are compared, rounded to some digits; NaN where missing. Shape [N]."""
    try:
        x = np.array(values, np.float64)  # of None, NaN
    except ValueError:  # a text is no number
        known = (value if isinstance(value, int | float) else math.nan for value in values)
        x = np.fromiter(known, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log10(np.abs(x)))
    exponent = np.where(np.isfinite(exponent), np.maximum(exponent, -290), 0.0)
    scale = 10.0 ** (_DIGITS - 1 - exponent)
    return np.round(x * scale) / scale


def bin_counts(x: Floats, edges: Sequence[float] | Floats) -> NDArray[np.int64]:
    """How many of x [N] are in each bin, whose upper edge belongs to it. Shape [E + 1]."""
    return np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1)


def design_effect(indicators: NDArray[np.bool_], group: NDArray[np.int64]) -> float:
    """By how much clusters raise the variance of the share of an indicator: the most of all
    `indicators` [N, K], of each value and of its group [N]; 1 at least."""
    num = len(indicators)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=group.min() - 1))
    num_groups = len(starts)
    if num_groups < 2:
        return float(num)
    deviation = indicators - indicators.mean(axis=0)
    simple = (deviation**2).sum(axis=0) * num / (num - 1)
    varies = simple > 0
    if not varies.any():  # all are equal: nothing tells how much that says
        return num / num_groups
    totals = np.add.reduceat(deviation[order], starts, axis=0)
    clustered = (totals**2).sum(axis=0) * num_groups / (num_groups - 1)
    return float(np.clip((clustered[varies] / simple[varies]).max(), 1.0, num))


def _of_whole_groups(effect: float, group: NDArray[np.int64], num_rows: int) -> float | None:
    """The design effect of groups that are read whole, from that of the rows drawn from them: it is
    1 + (m - 1) rho, and of the m rows of a group a share was drawn (Kish). None where there are
    hardly two of a group."""
    _, counts = np.unique(group, return_counts=True)
    if (counts**2).sum() < _MIN_GROUP * len(group):
        return None
    return 1.0 + (effect - 1.0) * num_rows / len(group)


def _quantiles(x: Floats, levels: Floats) -> Floats:
    return np.quantile(x, levels, method="inverted_cdf")
