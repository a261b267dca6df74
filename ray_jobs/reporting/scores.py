"""How numbers are written in a report, and what a metric is called and measured against."""

from __future__ import annotations

import math
from datetime import datetime

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.result import JobResult, MetricValue

MISSING = "—"

_VALUE_ERROR = "param_value_mae_"  # begins the names of mean absolute errors of G-code's values

_LABELS = {
    "macro_f1": "Macro F1",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "top3_accuracy": "Top-3 accuracy",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "auc": "AUC",
    "log_loss": "Log-loss",
    "ece": "ECE",
    "composite_acc": "Composite accuracy",
    "command_acc": "Command accuracy",
    "param_type_acc": "Parameter-set accuracy",
    "param_value_acc": "Value accuracy",
    "composite_acc_margin": "Margin over the baseline",
    **{f"param_value_acc_{name}": f"Value accuracy of {name}" for name in PARAMETERS},
    **{f"{_VALUE_ERROR}{name}": f"Mean error of {name}" for name in PARAMETERS},
}
_MEANINGS = {
    "macro_f1": "mean of the classes' F1, whatever their size",
    "accuracy": "share of rows answered rightly",
    "balanced_accuracy": "mean of the classes' recall",
    "top3_accuracy": "the right class is among the three likeliest",
    "f1": "harmonic mean of precision and recall",
    "precision": "share of alarms that are true",
    "recall": "share of positives that are found",
    "auc": "chance that a positive is ranked above a negative",
    "log_loss": "surprise of the probabilities, in nats",
    "ece": "distance of probabilities from frequencies",
    "composite_acc": "the product of the three below",
    "command_acc": "share of windows whose command is named",
    "param_type_acc": "share of windows whose set of parameters is named exactly",
    "param_value_acc": "share of values that are within tolerance",
    "composite_acc_margin": "composite accuracy less that of the baseline",
}
_COSTS = ("log_loss", "ece")  # lower is better


def metric_label(metric: str) -> str:
    return _LABELS.get(metric, metric)


def metric_in_text(metric: str) -> str:
    """The label within a sentence: `macro F1`, but `AUC`."""
    label = metric_label(metric)
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def metric_meaning(metric: str) -> str:
    return _MEANINGS.get(metric, "")


def in_order(metrics: set[str]) -> list[str]:
    """The metrics in their usual order; those of other workloads follow by name."""
    known = [metric for metric in _LABELS if metric in metrics]
    return known + sorted(metrics - set(known))


def sign(metric: str, result: JobResult) -> int:
    """+1 where more is better, -1 where less is."""
    if metric == result.objective.metric:
        return 1 if result.objective.mode == "max" else -1
    return -1 if metric in _COSTS or metric.startswith(_VALUE_ERROR) else 1


def inputs(result: JobResult) -> str:
    """What the model looks at, in a word."""
    return "pictures" if result.data and result.data.scan else "features"


def no_skill(metric: str, result: JobResult) -> float | None:
    """What an answer that never looks at the features can score on the test split; None if unknown.

    Accuracy: the commoner class. F1: always positive. AUC: a coin. Log-loss: the base rate.
    Of several classes: always the commonest; the three commonest; the base rates. A constant
    answer that was scored beside the model comes before all of these.
    """
    constant = result.rivals.get("constant", {}).get("test", {}).get(metric)
    if constant is not None:
        return constant.value
    test = result.data.splits.get("test") if result.data else None
    if test is not None and test.class_counts:
        return _no_skill_of_classes(metric, list(test.class_counts.values()))
    if test is None or test.num_positive is None or not 0 < test.num_positive < test.num_rows:
        return None
    positive = test.num_positive / test.num_rows
    entropy = -positive * math.log(positive) - (1 - positive) * math.log(1 - positive)
    scores = {
        "accuracy": max(positive, 1 - positive),
        "f1": 2 * positive / (1 + positive),
        "auc": 0.5,
        "log_loss": entropy,
    }
    return scores.get(metric)


def _no_skill_of_classes(metric: str, class_counts: list[int]) -> float | None:
    num_rows = sum(class_counts)
    shares = sorted((count / num_rows for count in class_counts if count), reverse=True)
    if len(shares) < 2:
        return None
    scores = {
        "macro_f1": 2 * shares[0] / (1 + shares[0]) / len(shares),
        "accuracy": shares[0],
        "balanced_accuracy": 1 / len(shares),
        "top3_accuracy": sum(shares[:3]),
        "log_loss": -sum(share * math.log(share) for share in shares),
    }
    return scores.get(metric)


def landmarks(metric: str, result: JobResult) -> dict[str, float]:
    """Scores to measure a test score against, as far as they are known."""
    ceiling = result.data.ceiling.get("test", {}).get(metric) if result.data else None
    known = {"No skill": no_skill(metric, result), "Ceiling": ceiling}
    return {name: value for name, value in known.items() if value is not None}


def number(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def interval(value: MetricValue | None) -> str:
    """`0.840–0.900`, or a dash where there is no interval."""
    if value is None or value.low is None or value.high is None:
        return MISSING
    return f"{number(value.low)}–{number(value.high)}"


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else MISSING


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `1 h 02 min`."""
    if seconds is None:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(value: datetime | None) -> str:
    return MISSING if value is None else value.strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def plural(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
