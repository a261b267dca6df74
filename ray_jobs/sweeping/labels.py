"""How hyperparameters are written where a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ray_jobs.sweeping.search import Config
from ray_jobs.sweeping.spec import Distribution, Value


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by its last part, or in full where two keys share that."""
    last = {key: key.rpartition(".")[2] for key in keys}
    num_of = Counter(last.values())
    return {key: key if num_of[name] > 1 else name for key, name in last.items()}


def value_text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def config_text(config: Config) -> str:
    names = short_keys(config)
    return ", ".join(f"{names[key]} {value_text(value)}" for key, value in config.items())


def distribution_text(distribution: Distribution) -> str:
    if distribution.values is not None:
        return ", ".join(value_text(value) for value in distribution.values)
    assert distribution.low is not None
    assert distribution.high is not None
    words = f"{value_text(distribution.low)} to {value_text(distribution.high)}"
    kinds = {"whole numbers": distribution.integer, "log": distribution.log}
    return ", ".join([words, *(kind for kind, is_so in kinds.items() if is_so)])
