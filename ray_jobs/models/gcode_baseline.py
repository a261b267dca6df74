"""The baseline of a decoder of G-code: histogram gradient boosting on statistics of the window.

It is fitted to be measured, not to be kept.

Shapes: N windows, T rows a window, F features, P parameters as in PARAMETERS.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.windows import Windows
from ray_jobs.gcode_metrics import GcodeLines

NUM_STATISTICS = 7  # of each feature: mean, std, min, max, last, slope, share of rows measured
_ROUNDS = {"max_iter": 60, "early_stopping": False}
_WINDOWS_AT_ONCE = 1024
_FEW = 20  # values of a parameter in train: fewer are answered by their median

Floats = NDArray[np.float64]


class _Model(Protocol):
    def predict(self, X: NDArray[Any]) -> NDArray[Any]: ...


class GcodeBaseline:
    """A classifier of commands, one of each parameter's being set, a regressor of each value.

    Args:
        seed: of the boosting's bins.
    """

    def __init__(self, train: Windows, *, seed: int):
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        x = window_statistics(train)

        def fit(kind: Any, rows: NDArray[np.bool_] | slice, y: NDArray[Any], **args: Any) -> _Model:
            return kind(random_state=seed, **_ROUNDS, **args).fit(x[rows], y)

        everything = slice(None)
        self._command = _or_constant(
            train.command,
            lambda y: fit(HistGradientBoostingClassifier, everything, y),
        )
        self._sets = [
            _or_constant(
                train.param_type[:, p],
                lambda y: fit(HistGradientBoostingClassifier, everything, y),
            )
            for p in range(len(PARAMETERS))
        ]
        self._values = []
        for p in range(len(PARAMETERS)):
            is_set = train.param_type[:, p]
            y = train.param_value[is_set, p]
            # The metric counts near values, however far off the others are.
            self._values.append(
                fit(HistGradientBoostingRegressor, is_set, y, loss="absolute_error")
                if len(y) >= _FEW and np.ptp(y) > 0
                else _Constant(np.median(y) if len(y) else 0.0)
            )

    def decode(self, windows: Windows) -> GcodeLines:
        """What it says of windows."""
        x = window_statistics(windows)
        return GcodeLines(
            self._command.predict(x).astype(np.int64),
            np.column_stack([model.predict(x) for model in self._sets]).astype(bool),
            np.column_stack([model.predict(x) for model in self._values]).astype(np.float64),
        )


class _Constant:
    """What there is to learn from targets that are all the same."""

    def __init__(self, value: Any):
        self._value = value

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        return np.full(len(X), self._value)


def _or_constant(y: NDArray[Any], fit: Any) -> _Model:
    return _Constant(y[0]) if (y == y[0]).all() else fit(y)


def window_statistics(windows: Windows) -> NDArray[np.float32]:
    """Mean, std, min, max, last value, slope a row, and share of rows measured, of each feature.

    Those of rows that were measured; NaN where none was. Shape [N, 7 F].
    """
    index = np.arange(len(windows))
    starts = range(0, len(index), _WINDOWS_AT_ONCE)
    parts = [_statistics(*windows.batch(index[s : s + _WINDOWS_AT_ONCE])) for s in starts]
    return np.concatenate(parts)


def _statistics(x: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of rows x [N, T, F] that are 0 where `mask` is False."""
    num = mask.sum(axis=1)
    row = np.arange(x.shape[1])[None, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: not measured
        mean = x.sum(axis=1) / num
        deviation = np.where(mask, x - mean[:, None], 0.0)
        std = np.sqrt((deviation**2).sum(axis=1) / num)
        when = np.where(mask, row - ((row * mask).sum(axis=1) / num)[:, None], 0.0)
        slope = (when * deviation).sum(axis=1) / (when**2).sum(axis=1)
    low = np.where(mask, x, np.inf).min(axis=1)
    high = np.where(mask, x, -np.inf).max(axis=1)
    last_row = np.where(mask, row, 0).max(axis=1)
    last = np.take_along_axis(x, last_row[:, None], axis=1)[:, 0]
    statistics = [mean, std, low, high, last]
    known = [np.where(num > 0, part, np.nan) for part in statistics]
    columns = [*known, np.where(num > 1, slope, np.nan), num / x.shape[1]]
    return np.concatenate(columns, axis=1).astype(np.float32)
