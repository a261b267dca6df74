"""Metrics of decoded G-code, with intervals, and the constant answer that they are measured
against.

Shapes: N windows, P parameters as in PARAMETERS. A value is judged on the parameters that the true
line sets, whether or not the model says that the line sets them: what it says of that is what
`param_type_acc` measures. numpy alone, so that a fit can measure every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_jobs.bootstrap import group_resamples, percentile_interval
from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.metrics import group_codes
from ray_jobs.result import ClassScores, MetricValue

HEAD_METRICS = ("composite_acc", "command_acc", "param_type_acc", "param_value_acc")
CONSTANT_SHARE = 0.95  # of an axis' values: a tolerance that gives a constant more is too wide

_ROUNDING = 1e-9  # 1.1 - 1.0 is not above 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GcodeLines:
    """The lines of N windows: true ones, or what a model says.

    Raises:
        ValueError: the arrays differ in length, or are not as wide as PARAMETERS.
    """

    command: NDArray[np.int64]  # [N]; below 0: a true command that train does not have
    param_type: NDArray[np.bool_]  # [N, P] which parameters the line sets
    param_value: Floats  # [N, P] in machine units; of a true line NaN where it sets none

    def __post_init__(self) -> None:
        wanted = (len(self.command), len(PARAMETERS))
        for name in ("param_type", "param_value"):
            shape = getattr(self, name).shape
            if shape != wanted:
                raise ValueError(f"{name} must be {list(wanted)}, but is {list(shape)}")

    def __len__(self) -> int:
        return len(self.command)


@dataclass(frozen=True)
class Tolerance:
    """How far each parameter's value may be off: `absolute` + `relative` x |true value|."""

    absolute: tuple[float, ...]  # [P], in machine units
    relative: tuple[float, ...]  # [P]

    def allowed(self, values: Floats) -> Floats:
        """Largest errors [N, P] that count as right for true values [N, P]."""
        return np.array(self.absolute) + np.array(self.relative) * np.abs(values) + _ROUNDING


def gcode_metrics(true: GcodeLines, said: GcodeLines, tolerance: Tolerance) -> dict[str, float]:
    """Accuracy of each head, their product, and errors by parameter.

    - command_acc: share of windows whose command is named; one that train lacks never is.
    - param_type_acc: share of windows whose set of parameters is named exactly.
    - param_value_acc: share of the values that the true lines set which are within tolerance;
      param_value_acc_X of one parameter.
    - param_value_mae_X: mean absolute error of them, in machine units.
    - composite_acc: command_acc x param_type_acc x param_value_acc.

    What the windows do not define, such as the error of a parameter that no line sets, is absent.

    Raises:
        ValueError: lengths differ; no windows; a said command below 0, or a value not finite where
            the true line sets one.
    """
    return _Table(true, said, tolerance, np.zeros(len(true), np.int64)).estimates()


def bootstrap_intervals(
    true: GcodeLines,
    said: GcodeLines,
    tolerance: Tolerance,
    *,
    groups: ArrayLike,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, MetricValue]:
    """`gcode_metrics` with percentile bootstrap intervals.

    Whole groups [N] are resampled (cluster bootstrap: Field & Welsh 2007, JRSS B 69, 369-390), and
    the composite is the product within each resample. There is no interval with a single group,
    for a metric that is the same in all resamples, or one that too many of them do not define.

    Raises:
        ValueError: as `gcode_metrics`, or `groups` of another length.
    """
    table = _Table(true, said, tolerance, group_codes(groups, len(true)))
    draws = table.draws(num_resamples, seed)
    return {
        name: percentile_interval(value, draws[name], confidence)
        for name, value in table.estimates().items()
    }


def bootstrap_margin(
    true: GcodeLines,
    said: GcodeLines,
    other: GcodeLines,
    tolerance: Tolerance,
    *,
    groups: ArrayLike,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> MetricValue | None:
    """By how much `said` has a higher composite_acc than `other` on the same windows; None if it is
    not defined.

    Both are scored on the same resamples of groups, so that what makes a group hard for both does
    not widen the interval.

    Raises:
        ValueError: as `bootstrap_intervals`.
    """
    codes = group_codes(groups, len(true))
    a, b = (_Table(true, lines, tolerance, codes) for lines in (said, other))
    name = "composite_acc"
    if name not in a.estimates():
        return None
    margin = a.estimates()[name] - b.estimates()[name]
    draws = a.draws(num_resamples, seed)[name] - b.draws(num_resamples, seed)[name]
    return percentile_interval(margin, draws, confidence)


def command_scores(
    true: GcodeLines, said: GcodeLines, commands: Sequence[str]
) -> list[ClassScores]:
    """Precision, recall and F1 of every command that train has, in the order of `commands`.

    Absent are the precision of a command never named, and the recall and F1 of one without windows.

    Raises:
        ValueError: as `gcode_metrics`.
    """
    _check(true, said)
    seen = true.command[true.command >= 0]
    right = true.command[true.command == said.command]
    support, named, hits = (
        np.bincount(each, minlength=len(commands)).tolist() for each in (seen, said.command, right)
    )
    return [
        ClassScores(
            name=name,
            support=n,
            precision=tp / called if called else None,
            recall=tp / n if n else None,
            f1=2 * tp / (n + called) if n else None,
        )
        for name, n, called, tp in zip(commands, support, named, hits, strict=True)
    ]


def constant_lines(train: GcodeLines, num_windows: int) -> GcodeLines:
    """The answer that looks at no sensor: train's commonest command, its commonest set of
    parameters, and the median of each parameter's values (0 of one that train never sets)."""
    assert len(train), "train has no windows"
    sets, counts = np.unique(train.param_type, axis=0, return_counts=True)
    medians = [
        np.median(column[is_set]) if is_set.any() else 0.0
        for column, is_set in zip(train.param_value.T, train.param_type.T, strict=True)
    ]
    return GcodeLines(
        np.full(num_windows, np.bincount(train.command).argmax()),
        np.tile(sets[counts.argmax()], (num_windows, 1)),
        np.tile(np.array(medians, np.float64), (num_windows, 1)),
    )


def wide_tolerances(constant: Mapping[str, float], split: str) -> list[str]:
    """A warning for each tolerance so wide that the constant answer passes.

    Args:
        constant: `gcode_metrics` of `constant_lines` on a split.
    """
    return [
        f"value_tolerance.{name} is so wide that one constant is right for {share:.1%} of the "
        f"{name} values of {split}: param_value_acc says nothing of {name}; lower "
        f"value_tolerance.{name}"
        for name in PARAMETERS
        if (share := constant.get(f"param_value_acc_{name}", 0.0)) > CONSTANT_SHARE
    ]


class _Table:
    """Sums for each group, from which the metrics of any reweighting of the groups follow.

    Shapes: G groups, B reweightings, S = 3 + 3 P sums.
    """

    def __init__(
        self,
        true: GcodeLines,
        said: GcodeLines,
        tolerance: Tolerance,
        group: NDArray[np.int64],
    ) -> None:
        is_set = true.param_type
        _check(true, said)
        error = np.where(is_set, np.abs(said.param_value - true.param_value), 0.0)
        is_near = is_set & (error <= tolerance.allowed(true.param_value))
        columns = np.column_stack(
            [
                np.ones(len(true)),
                said.command == true.command,
                (said.param_type == is_set).all(axis=1),
                is_set,
                is_near,
                error,
            ]
        ).astype(np.float64)
        num_groups = int(group.max()) + 1
        sums = [np.bincount(group, column, minlength=num_groups) for column in columns.T]
        self._sums = np.column_stack(sums)  # [G, S]

    def estimates(self) -> dict[str, float]:
        """The metrics that are defined with every group taken once."""
        values = self._metrics(self._sums.sum(axis=0, keepdims=True))
        return {name: float(v[0]) for name, v in values.items() if not np.isnan(v[0])}

    def draws(self, num_resamples: int, seed: int) -> dict[str, Floats]:
        """The metrics of resamples with as many draws as groups, each [B]; NaN where undefined."""
        num_groups, num_sums = self._sums.shape
        chunks = group_resamples(num_groups, num_resamples, seed, row_cells=num_groups + num_sums)
        return self._metrics(np.concatenate([counts @ self._sums for counts in chunks]))

    @staticmethod
    def _metrics(sums: Floats) -> dict[str, Floats]:
        """Every metric of reweighted sums [B, S], each [B]; NaN where undefined."""
        num_rows, command, param_type = sums[:, :3].T
        num_set, num_near, error = np.split(sums[:, 3:], 3, axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            heads = {
                "command_acc": command / num_rows,
                "param_type_acc": param_type / num_rows,
                "param_value_acc": num_near.sum(axis=1) / num_set.sum(axis=1),
            }
            near, mae = (num_near / num_set).T, (error / num_set).T
        composite = np.prod(list(heads.values()), axis=0)
        by_parameter = {
            f"{metric}_{name}": values[p]
            for metric, values in (("param_value_acc", near), ("param_value_mae", mae))
            for p, name in enumerate(PARAMETERS)
        }
        return {"composite_acc": composite, **heads, **by_parameter}


def _check(true: GcodeLines, said: GcodeLines) -> None:
    if len(true) != len(said):
        raise ValueError(f"there are {len(true)} true lines, but {len(said)} said ones")
    if not len(true):
        raise ValueError("there are no windows to measure")
    if (said.command < 0).any():
        raise ValueError("a said command is below 0, which stands for those that train lacks")
    for what, lines in (("true", true), ("said", said)):
        if not np.isfinite(lines.param_value[true.param_type]).all():
            raise ValueError(f"a {what} value of a parameter that is set is not finite")
