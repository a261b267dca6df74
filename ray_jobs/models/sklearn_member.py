"""A scikit-learn classifier as an ensemble member: each row is scored alone, from its features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import Rows
from ray_jobs.models.base import FitContext, FitReport

_FILE = "model.skops"


class SklearnMember:
    """Fits, predicts with, and stores one scikit-learn classifier.

    Args:
        make: builds the unfitted classifier for a FitContext.
        trusted: types outside skops' own list that the file may hold; loading any other is refused.
        fit: fits the classifier and reports; for families that have more to say than `fit()`.
    """

    def __init__(
        self,
        make: Callable[[FitContext], Any],
        trusted: tuple[str, ...] = (),
        fit: Callable[[Any, Rows, Rows, FitContext], FitReport] | None = None,
    ):
        self._make = make
        self._trusted = trusted
        self._fit = fit
        self._classifier: Any = None

    def fit(self, train: Rows, val: Rows, context: FitContext) -> FitReport:
        classifier = self._make(context)
        if self._fit is None:
            classifier.fit(train.x, train.y)
            report = FitReport()
        else:
            report = self._fit(classifier, train, val, context)
        self._classifier = classifier
        return report

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        return np.asarray(self._classifier.predict_proba(rows.x)[:, 1], dtype=np.float64)

    def save(self, folder: Path) -> None:
        import skops.io

        skops.io.dump(self._classifier, folder / _FILE)

    def load(self, folder: Path) -> None:
        import skops.io

        self._classifier = skops.io.load(folder / _FILE, trusted=list(self._trusted))
