"""Judge: what a workload's live predictions decide, and how right they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal

import numpy as np

from ray_jobs.data.machine_logs.gcode import PARAMETERS, Line, MalformedGcode, parse_line
from ray_jobs.errors import DataError
from ray_jobs.gcode_metrics import Tolerance
from ray_jobs.monitoring.records import Record

Better = Literal["higher", "lower"]
Truths = Mapping[int, str]  # of a request, by the number of the prediction; at least one
_YES, _NO = "fire", "no fire"
_TRUE, _FALSE = ("1", "1.0", "true", "yes", _YES), ("0", "0.0", "false", "no", _NO)


@dataclass(frozen=True)
class Score:
    """A measure of one request, in [0, 1], whose mean over requests is compared."""

    name: str
    better: Better
    of: Callable[[Record, Truths], float]


@dataclass(frozen=True)
class Judge:
    """One workload's. The first of the scores is the one that decides."""

    outputs: Mapping[str, type | UnionType]  # that a record must have
    decisions: Callable[[Record], list[str]]  # of each prediction
    truth: Callable[[str], str]  # a label as it is judged; a ValueError says what is wrong with it
    scores: tuple[Score, ...]
    positive: str | None = None  # the decision whose share is compared

    def can_read(self, record: Record) -> bool:
        outputs: Mapping[str, Any] = record.outputs or {}
        columns = [outputs.get(name, []) for name in self.outputs]
        return len({len(column) for column in columns}) == 1 and all(
            column and all(isinstance(value, kind) for value in column)
            for column, kind in zip(columns, self.outputs.values(), strict=True)
        )


def judge_of(
    workload: str, threshold_of: Callable[[Record], float], tolerance: Tolerance | None = None
) -> Judge:
    """The judge of a workload.

    Args:
        threshold_of: the probability from which the model of a record says fire; asked of fire's.
        tolerance: how far the values of a line may be off; of gcode.
    """
    if workload == "fire":
        return _fire(threshold_of)
    if workload == "waste":
        return Judge({"label": str}, _label, str, (_accuracy(_label),))
    assert tolerance is not None, "of gcode"
    values = dict.fromkeys(PARAMETERS, float | None)
    outputs = {"command": str, "parameters": str, **values}
    return Judge(outputs, _line, _gcode_truth, (_line_accuracy(tolerance),))


def _accuracy(decisions: Callable[[Record], list[str]]) -> Score:
    def accuracy(record: Record, truths: Truths) -> float:
        said = decisions(record)
        return sum(said[number] == truth for number, truth in truths.items()) / len(truths)

    return Score("accuracy", "higher", accuracy)


def _label(record: Record) -> list[str]:
    assert record.outputs is not None
    return [str(label) for label in record.outputs["label"]]


def _line(record: Record) -> list[str]:
    """The command, and the letters of the parameters that are set."""
    assert record.outputs is not None
    pairs = zip(record.outputs["command"], record.outputs["parameters"], strict=True)
    return [f"{command} {parameters}" for command, parameters in pairs]


def _line_accuracy(tolerance: Tolerance) -> Score:
    """A line is right if its command, the parameters that it sets and their values all are."""

    def accuracy(record: Record, truths: Truths) -> float:
        assert record.outputs is not None
        said, outputs = _line(record), record.outputs
        right = 0
        for number, label in truths.items():
            line = parse_line(label)
            true = np.array([line.values.get(name, 0.0) for name in PARAMETERS])
            found = np.array([outputs[name][number] or 0.0 for name in PARAMETERS], np.float64)
            is_near = (np.abs(found - true) <= tolerance.allowed(true)).all()
            right += said[number] == _skeleton(line) and bool(is_near)
        return right / len(truths)

    return Score("accuracy", "higher", accuracy)


def _skeleton(line: Line) -> str:
    letters = "".join(letter for letter in PARAMETERS if letter in line.values)
    return f"{line.command} {letters or 'none'}"


def _gcode_truth(label: str) -> str:
    """A line such as `G1 X10 F200`."""
    try:
        line = parse_line(label)
    except MalformedGcode as error:
        raise ValueError(str(error)) from None
    if line.command is None:
        raise ValueError("it names no command; give the one that was in force, as in G1 X10")
    return label


def _fire(threshold_of: Callable[[Record], float]) -> Judge:
    def decisions(record: Record) -> list[str]:
        assert record.outputs is not None
        threshold = threshold_of(record)
        return [_YES if float(p) >= threshold else _NO for p in record.outputs["probability"]]

    def brier(record: Record, truths: Truths) -> float:
        assert record.outputs is not None
        p = record.outputs["probability"]
        errors = ((float(p[number]) - (truth == _YES)) ** 2 for number, truth in truths.items())
        return sum(errors) / len(truths)

    scores = (_accuracy(decisions), Score("Brier score", "lower", brier))
    return Judge({"probability": float}, decisions, _fire_truth, scores, positive=_YES)


def _fire_truth(label: str) -> str:
    text = label.strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError("it is none of 1 and 0")
    return _YES if text in _TRUE else _NO


def checked_truth(judge: Judge, request_id: str, label: str) -> str:
    """A label as it is judged.

    Raises:
        DataError: it is none of this workload's.
    """
    try:
        return judge.truth(label)
    except ValueError as error:
        raise DataError(f"the outcome {label!r} of request {request_id!r}: {error}") from None
