"""Members that an ensemble can use, judged by the type of their results: nothing is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ray_jobs.ensembling.build import build_ensemble
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.errors import JobFailed
from ray_jobs.metrics import check_predictions
from ray_jobs.result import MemberResult, Objective

_REQUIRED = ("f1", "accuracy")


def usable_members(results: Sequence[MemberResult]) -> tuple[list[str], dict[str, str]]:
    """Names of the members with a sound result, in order, and why each other one has none.

    A sound result has SUCCEEDED, with a validation F1 and accuracy within 0..1.

    Raises:
        ValueError: two results have the same name.
    """
    counts = Counter(result.name for result in results)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"there are several results named {repeated[0]!r}")
    faults = {result.name: _fault_of_result(result) for result in results}
    usable = [name for name, fault in faults.items() if fault is None]
    return usable, {name: fault for name, fault in faults.items() if fault is not None}


def ensemble_members(
    results: Sequence[MemberResult],
    predictions: Mapping[str, ArrayLike],
    y: ArrayLike,
    groups: ArrayLike,
    *,
    strategy: str,
    calibration: str,
    objective: Objective,
    seed: int,
) -> tuple[Ensemble, dict[str, str]]:
    """`build_ensemble` of the members with sound results and predictions, and why others are out.

    Sound predictions are one probability for each row of `y` [N]. If no member has both, all with
    sound predictions are averaged with equal weights, with a note.

    Raises:
        JobFailed: no member predicts.
        ValueError: as `build_ensemble` and `usable_members`.
    """
    usable, excluded = usable_members(results)
    faults = {
        name: _fault_of_predictions(name, predictions, y)
        for name in dict.fromkeys([*usable, *predictions])
    }
    predicting = [name for name, fault in faults.items() if fault is None]
    excluded |= {name: fault for name in usable if (fault := faults[name]) is not None}
    names = [name for name in usable if name in predicting]
    notes: tuple[str, ...] = ()
    if not names and predicting:
        names, strategy = predicting, "equal"
        notes = (f"no member has usable metrics: equal weights over {', '.join(sorted(names))}",)
    if not names:
        listing = "; ".join(f"{name}: {reason}" for name, reason in sorted(excluded.items()))
        raise JobFailed(f"no member can be used ({listing or 'there are none'})")
    ensemble = build_ensemble(
        {name: predictions[name] for name in names},
        y,
        groups,
        strategy=strategy,
        calibration=calibration,
        objective=objective,
        seed=seed,
    )
    return ensemble.model_copy(update={"notes": notes + ensemble.notes}), excluded


def _fault_of_result(result: MemberResult) -> str | None:
    if result.status != "SUCCEEDED":
        return result.reason or f"its status is {result.status}"
    metrics = result.metrics.get("val", {})
    for name in _REQUIRED:
        if name not in metrics:
            return f"its result has no validation {name}"
        if not 0 <= metrics[name].value <= 1:
            return f"its validation {name} is {metrics[name].value:g}, not within 0..1"
    return None


def _fault_of_predictions(
    name: str, predictions: Mapping[str, ArrayLike], y: ArrayLike
) -> str | None:
    if name not in predictions:
        return "it has no validation predictions"
    if np.asarray(predictions[name]).dtype.kind not in "fiub":
        return "its validation predictions are not numbers"
    try:
        check_predictions(y, predictions[name])
    except ValueError as error:
        return f"its validation predictions cannot be used: {error}"
    return None
