"""Logistic regression with an L2 penalty on standardised features."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from ray_jobs.models.base import FitContext, MemberConfig
from ray_jobs.models.sklearn_member import SklearnMember


class LogisticRegressionL2(MemberConfig):
    family: Literal["logistic_regression"] = "logistic_regression"
    inverse_penalty: PositiveFloat = 1.0  # scikit-learn's C
    max_iterations: PositiveInt = 1000

    def estimate_seconds(self, num_train: int, num_val: int) -> float:
        return 1 + 2e-6 * num_train

    def build(self) -> SklearnMember:
        return SklearnMember(self._make)

    def _make(self, context: FitContext) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(C=self.inverse_penalty, max_iter=self.max_iterations)
        return make_pipeline(StandardScaler(), regression)
