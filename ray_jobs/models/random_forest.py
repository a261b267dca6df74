"""Random forest (Breiman 2001)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt

from ray_jobs.models.base import FitContext, MemberConfig
from ray_jobs.models.sklearn_member import SklearnMember


class RandomForest(MemberConfig):
    family: Literal["random_forest"] = "random_forest"
    num_trees: PositiveInt = 200
    max_depth: PositiveInt | None = 10
    min_samples_leaf: PositiveInt = 1

    def estimate_seconds(self, num_train: int, num_val: int) -> float:
        return 2.0e-7 * num_train * self.num_trees * min(self.max_depth or 20, 20)

    def build(self) -> SklearnMember:
        return SklearnMember(self._make, trusted=("sklearn.tree._tree.Tree",))

    def _make(self, context: FitContext) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(
            n_estimators=self.num_trees,
            max_depth=self.max_depth,
            min_samples_leaf=self.min_samples_leaf,
            n_jobs=context.num_threads,
            random_state=context.seed,
        )
