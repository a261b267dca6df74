"""Observation: what a request held and what was predicted of it, in numbers and labels to watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Observation:
    """One request, and its answer."""

    features: Mapping[str, Sequence[float | None]]  # of each row, by feature; None: not measured
    outputs: Mapping[str, Sequence[float | str]]  # of each prediction, by output
    # Of each prediction, too: recorded, so that it can be found right or wrong, but not watched.
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
