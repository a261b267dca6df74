"""Validation: what the members say of the validation rows, and what those rows were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_jobs.metrics import Floats, check_predictions, group_codes


@dataclass(frozen=True)
class Validation:
    """The validation split as an ensemble sees it. N rows, C clusters of rows.

    Rows of one cluster are not independent of each other.
    """

    predictions: Mapping[str, Floats]  # member, in order of name -> P(y = 1) [N]
    y: NDArray[np.int8]  # [N], 0 or 1
    clusters: NDArray[np.int64]  # [N], 0..C-1

    @classmethod
    def of(
        cls, predictions: Mapping[str, ArrayLike], y: ArrayLike, groups: ArrayLike
    ) -> Validation:
        """Check everything once.

        Raises:
            ValueError: names the member, or what is wrong with the labels or the groups.
        """
        if not predictions:
            raise ValueError("an ensemble needs the predictions of at least one member")
        checked = {}
        for name in sorted(predictions):
            try:
                labels, checked[name] = check_predictions(y, predictions[name])
            except ValueError as error:
                raise ValueError(f"predictions of {name!r}: {error}") from None
        if labels.min() == labels.max():
            raise ValueError("an ensemble needs validation rows of both classes")
        return cls(checked, labels, group_codes(groups, len(labels)))

    @property
    def members(self) -> list[str]:
        return list(self.predictions)

    def take(self, rows: NDArray[np.bool_]) -> Validation:
        """The rows where the mask [N] is true, their clusters renumbered."""
        predictions = {name: p[rows] for name, p in self.predictions.items()}
        clusters = self.clusters[rows]
        return Validation(predictions, self.y[rows], group_codes(clusters, len(clusters)))
