"""Gradient boosting over histograms of the features (Friedman 2001; Ke et al. 2017, LightGBM)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from ray_jobs.data.dataset import Rows
from ray_jobs.models.base import FitContext, FitReport, MemberConfig, validation_metrics
from ray_jobs.models.sklearn_member import SklearnMember

_TREES = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_CURVE_POINTS = 20


class GradientBoosting(MemberConfig):
    family: Literal["gradient_boosting"] = "gradient_boosting"
    num_rounds: PositiveInt = 200
    learning_rate: PositiveFloat = 0.1
    max_leaf_nodes: PositiveInt = 31
    l2_regularization: float = 0.0

    def estimate_seconds(self, num_train: int, num_val: int) -> float:
        return 2e-7 * self.num_rounds * (num_train + num_val)

    def build(self) -> SklearnMember:
        return SklearnMember(self._make, trusted=(_TREES,), fit=_fit_with_curve)

    def _make(self, context: FitContext) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(
            max_iter=self.num_rounds,
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.max_leaf_nodes,
            l2_regularization=self.l2_regularization,
            early_stopping=False,  # scikit-learn's own holds out rows at random, across groups
            random_state=context.seed,
        )


def _fit_with_curve(classifier: Any, train: Rows, val: Rows, context: FitContext) -> FitReport:
    """Fit all rounds, keep the round with the best validation objective, and report the curve."""
    from threadpoolctl import threadpool_limits

    metric, mode = context.objective.metric, context.objective.mode
    with threadpool_limits(context.num_threads):
        classifier.fit(train.x, train.y)
        num_rounds = classifier.n_iter_
        every = max(1, num_rounds // _CURVE_POINTS)
        history = []
        for number, proba in enumerate(classifier.staged_predict_proba(val.x), start=1):
            if number % every == 0 or number == num_rounds:
                metrics = validation_metrics(val, proba[:, 1], context.objective)
                history.append({"epoch": number, **metrics})
                context.emit("epoch", epoch=number, num_epochs=num_rounds, metrics=metrics)
        choose = max if mode == "max" else min
        best = int(choose(history, key=lambda entry: entry[metric])["epoch"])
        if best < num_rounds:  # without subsampling, a shorter fit is the longer one cut off
            classifier.set_params(max_iter=best).fit(train.x, train.y)
    return FitReport(history=history, best_epoch=best, num_epochs=num_rounds)
