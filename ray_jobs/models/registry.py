"""Every model family by name. A new family is one file and one line here."""

from __future__ import annotations

from ray_jobs.models.base import MemberConfig
from ray_jobs.models.gradient_boosting import GradientBoosting
from ray_jobs.models.logistic_regression import LogisticRegressionL2
from ray_jobs.models.lstm_classifier import LSTMClassifier
from ray_jobs.models.random_forest import RandomForest
from ray_jobs.models.transformer import Transformer

FAMILIES: dict[str, type[MemberConfig]] = {
    "random_forest": RandomForest,
    "gradient_boosting": GradientBoosting,
    "logistic_regression": LogisticRegressionL2,
    "lstm_classifier": LSTMClassifier,
    "transformer": Transformer,
}
