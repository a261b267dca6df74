"""The tables that a report of many classes has beside those of every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.multiclass import confusion_matrix, worst_classes
from ray_jobs.reporting import charts, scores
from ray_jobs.result import ClassScores, JobResult

HEALTHY_SHARE, BAD_SHARE = 0.05, 0.20  # of what was left out: below the one, above the other
_NUM_WORST = 5
_NUM_CONFUSIONS = 10
_UNUSED = ("duplicate", "conflicting-label")  # left out, though they can be read


@dataclass(frozen=True)
class ClassRow:
    scores: ClassScores
    val_f1: float | None
    is_worst: bool
    bar: Markup


@dataclass(frozen=True)
class ClassTable:
    rows: list[ClassRow]  # the lowest F1 first
    absent: list[str]  # classes without a row in the split


def class_table(result: JobResult) -> ClassTable:
    """Every class that stands in test; the worst are marked, though never more than half."""
    test = result.classes.get("test", [])
    present = [entry for entry in test if entry.support]
    worst = [
        entry.name
        for entry in worst_classes(present, min(_NUM_WORST, len(present) // 2))
        if entry.f1 is not None and entry.f1 < 1
    ]
    val_f1 = {entry.name: entry.f1 for entry in result.classes.get("val", [])}
    ranked = worst_classes(present, len(present))
    ranked += [entry for entry in present if entry.f1 is None]
    rows = [
        ClassRow(entry, val_f1.get(entry.name), entry.name in worst, _f1_bar(entry))
        for entry in ranked
    ]
    return ClassTable(rows, [entry.name for entry in test if not entry.support])


def _f1_bar(entry: ClassScores) -> Markup:
    if entry.f1 is None:
        return Markup("")
    label = f"F1 of {entry.name}: {scores.number(entry.f1)}"
    return charts.bar(entry.f1, low=0.0, high=1.0, css="s-ensemble", label=label)


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that were named another."""

    true: str
    named: str
    count: int
    share: str  # of the true class


def commonest_confusions(test: ClassPredictions) -> list[Confusion]:
    """The pairs of classes that are taken for each other most often, the commonest first."""
    return commonest_of(confusion_matrix(test.y, test.p), test.classes)


def commonest_of(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[Confusion]:
    """The same of a confusion matrix [C, C], rows true, columns named."""
    support = matrix.sum(axis=1)
    pairs = [
        (int(num), i, j)
        for i, row in enumerate(matrix)
        for j, num in enumerate(row)
        if i != j and num
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [
        Confusion(classes[i], classes[j], num, scores.percent(num, int(support[i])))
        for num, i, j in pairs[:_NUM_CONFUSIONS]
    ]


def class_counts(result: JobResult) -> list[tuple[str, list[int | None]]]:
    """Rows of each class in each split; None where a split's counts are not known."""
    if result.data is None:
        return []
    splits = result.data.splits.values()
    names = dict.fromkeys([*result.data.classes, *(n for s in splits for n in s.class_counts)])
    return [
        (
            name,
            [split.class_counts.get(name, 0) if split.class_counts else None for split in splits],
        )
        for name in names
    ]


@dataclass(frozen=True)
class LeftOut:
    """How much of something was left out; the share decides how good that is."""

    what: str
    count: int
    whole: int | None  # None where unknown

    @property
    def share(self) -> str:
        return scores.percent(self.count, self.whole) if self.whole else scores.MISSING

    @property
    def level(self) -> str:
        """`healthy`, `warning`, `bad`, or a dash where the share is not known."""
        if not self.whole:
            return scores.MISSING
        share = self.count / self.whole
        if share > BAD_SHARE:
            return "bad"
        return "warning" if share >= HEALTHY_SHARE else "healthy"


def left_out(result: JobResult, histories: Mapping[str, Sequence[Mapping]]) -> list[LeftOut]:
    """What the scan and the training did without, of how much.

    Samples are counted against the rows of train times the epochs, batches against `num_batches`
    of the epochs where the history has it.
    """
    entries = []
    data = result.data
    if data and data.scan:
        unusable = sum(num for reason, num in data.scan.left_out.items() if reason not in _UNUSED)
        entries.append(LeftOut("Pictures that cannot be used", unusable, data.scan.num_files))
    train = data.splits.get("train") if data else None
    for member in result.members:
        of = f" of {member.name}" if len(result.members) > 1 else ""
        epochs = [epoch.get("num_batches") for epoch in histories.get(member.name) or []]
        batches = [num for num in epochs if isinstance(num, int)]
        whole = sum(batches) if batches and len(batches) == len(epochs) else None
        samples = train.num_rows * member.num_epochs if train and member.num_epochs else None
        entries.append(LeftOut(f"Batches skipped{of}", member.num_skipped_batches, whole))
        entries.append(
            LeftOut(f"Samples left out of batches{of}", member.num_failed_samples, samples)
        )
    return entries
