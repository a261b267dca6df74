"""Drift: what must raise the alarm does, and what has not drifted raises it as seldom as stated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from ray_jobs.data.features import FEATURES
from ray_jobs.data.simulator.episodes import episode_lengths, simulate_episode
from ray_jobs.drift import parse_since
from ray_jobs.errors import DriftFound, SpecError
from ray_jobs.monitoring.drift import DriftReport, Finding, Window, compare, conclude
from ray_jobs.monitoring.drift_report import render_drift_report
from ray_jobs.monitoring.reference import Reference, describe
from ray_jobs.monitoring.two_sample import effective_size

ALPHA = 0.01
NUM_REFERENCE = 2000


def reference_of(values: Sequence[float | str | None], name: str = "x") -> Reference:
    found = describe(values, np.arange(len(values)), len(values))
    return Reference(features={name: found}, outputs={})


def only(
    reference: Reference, values: Sequence[float | str | None], alpha: float = ALPHA
) -> Finding:
    (finding,) = compare(reference, Window({"x": values}), alpha)  # type: ignore[dict-item]
    return finding


def normal(num: int, seed: int, mean: float = 0.0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 1, num).tolist()


def unlucky(num_windows: int, alpha: float) -> int:
    """More false alarms than this happen by chance in one of a thousand such tests at most."""
    return int(binom.isf(1e-3, num_windows, alpha))


# A feature


def test_a_shift_raises_the_alarm() -> None:
    found = only(reference_of(normal(2000, 0)), normal(500, 1, mean=0.8))
    assert found.status == "drift"
    assert found.psi is not None
    assert found.psi_limit is not None
    assert found.psi > 3 * found.psi_limit
    assert {test.name for test in found.tests} == {"ks", "psi", "missing", "out_of_range"}
    assert only(reference_of(normal(2000, 0)), normal(500, 2)).status == "none"


def test_psi_above_a_convention_is_no_alarm_where_there_are_few() -> None:
    """At so few values PSI exceeds the customary 0.1 without any drift."""
    reference = reference_of(normal(60, 0))
    found = [only(reference, normal(100, seed)) for seed in range(1, 101)]
    above = [one for one in found if one.psi is not None and one.psi > 0.1]
    assert len(above) >= 5
    assert sum(one.status == "drift" for one in above) <= unlucky(100, ALPHA)
    assert all(one.psi_limit is not None and one.psi_limit > 0.1 for one in above)


@pytest.mark.parametrize(
    ("live", "test"),
    [
        ([None] * 60 + normal(440, 1), "missing"),
        ([50.0] * 30 + normal(470, 1), "out_of_range"),
        ((np.array(normal(500, 1)) * 2).tolist(), "ks"),
        ([3.0] * 500, "ks"),
    ],
)
def test_every_kind_of_drift_is_seen(live: list[float | None], test: str) -> None:
    if len(set(live)) > 1:
        np.random.default_rng(3).shuffle(live)
    found = only(reference_of(normal(2000, 0)), live)
    assert found.status == "drift"
    p = {one.name: one.p_adjusted for one in found.tests}
    assert p[test] <= ALPHA  # type: ignore[index]


def test_missing_and_out_of_range_shares() -> None:
    found = only(reference_of([*normal(1990, 0), *[None] * 10]), [*normal(48, 1), None, 99.0])
    assert found.missing_share == pytest.approx(1 / 50)
    assert found.reference_missing_share == pytest.approx(10 / 2000)
    assert found.out_of_range_share == pytest.approx(1 / 49)


@pytest.mark.parametrize("num", [0, 1, 5, 29])
def test_too_few_say_nothing(num: int) -> None:
    found = only(reference_of(normal(2000, 0)), normal(num, 1, mean=9.0))
    assert found.status == "unknown"
    assert found.reason == "not enough (n < 30 independent values)"
    assert found.psi is None
    assert found.histogram is None
    assert conclude([found], ALPHA) == (
        "unknown", "1 of 1 cannot be judged (x): not enough (n < 30 independent values)"
    )  # fmt: skip


def test_a_small_reference_says_nothing() -> None:
    found = only(reference_of(normal(9, 0)), normal(500, 1, mean=9.0))
    assert found.reason == "not enough in the reference (n < 10 independent values)"


def test_labels() -> None:
    rng = np.random.default_rng(0)
    names = ["glass", "metal", "paper", "rare"]
    p = [0.5, 0.3, 0.19, 0.01]
    reference = reference_of(rng.choice(names, 500, p=p).tolist())
    assert only(reference, rng.choice(names, 400, p=p).tolist()).status == "none"
    found = only(reference, rng.choice(names, 400, p=[0.25, 0.3, 0.44, 0.01]).tolist())
    assert found.status == "drift"
    assert {test.name for test in found.tests} == {"chi2", "psi"}
    unseen = only(reference, rng.choice(["glass", "new"], 400).tolist())
    assert unseen.status == "drift"
    assert unseen.histogram is not None
    assert unseen.histogram.bins[-1] == "new"


def test_a_feature_that_is_gone() -> None:
    reference = Reference(
        features={"x": describe(normal(2000, 0), np.arange(2000), 2000)}, outputs={}
    )
    (found,) = compare(reference, Window({"y": normal(500, 1)}), ALPHA)
    assert (found.status, found.num) == ("unknown", 0)


def test_the_worst_comes_first() -> None:
    table = {name: describe(normal(2000, 0), np.arange(2000), 2000) for name in "abc"}
    reference = Reference(features=table, outputs={"d": table["a"]})
    window = Window(
        {"a": normal(500, 1), "b": normal(20, 2), "c": normal(500, 3, mean=2)},
        {"d": normal(500, 4)},
    )
    found = compare(reference, window, ALPHA)
    assert [one.name for one in found][::3] == ["c", "b"]
    status, reason = conclude(found, ALPHA)
    assert (status, reason) == ("drift", "c drifted (false alarm rate 0.01)")
    tests = [test for one in found for test in one.tests]
    assert all(test.p <= test.p_adjusted <= 1 for test in tests)
    least = min(tests, key=lambda test: test.p)
    assert least.p_adjusted == pytest.approx(min(1, least.p * len(tests)))  # Holm's first step


# How much sequences say


def test_independent_values_count_at_least_a_quarter() -> None:
    sizes = [
        effective_size(np.array(normal(1000, seed))[:, None] <= [-1, 0, 1], None)
        for seed in range(20)
    ]
    assert 250 <= np.median(sizes) <= 1000


def test_values_that_last_count_once() -> None:
    held = np.repeat(normal(50, 1), 20)[:, None] <= [-1, 0, 1]
    assert effective_size(held, None) <= 60
    assert effective_size(held, 4.0) == pytest.approx(1000 / min(4.0, design_effect_of(held)))


def design_effect_of(indicators: np.ndarray) -> float:
    return len(indicators) / effective_size(indicators, None)


def test_a_change_for_good_is_told_from_a_slow_one() -> None:
    """The reference's groups bound how much the values of a window may hang together."""
    changed = np.array([*normal(500, 1), *normal(500, 2, mean=5)])[:, None] <= [0.0]
    assert effective_size(changed, None) < 30
    assert effective_size(changed, 10.0) == pytest.approx(100)
    stuck = np.ones((900, 1), bool)
    assert effective_size(stuck, 30.0) == 30
    assert effective_size(stuck, None) == 900


# Whole windows of the simulator


@cache
def episodes() -> list[np.ndarray]:
    lengths = episode_lengths(11, 30_000).tolist()
    return [simulate_episode(11, index, length).features() for index, length in enumerate(lengths)]


def split(rng: np.random.Generator) -> tuple[Reference, list[np.ndarray]]:
    """A reference of half of the episodes, and the others."""
    order = rng.permutation(len(episodes())).tolist()
    train = sorted(order[: len(order) // 2])
    x = np.concatenate([episodes()[index] for index in train])
    group = np.repeat(train, [len(episodes()[index]) for index in train])
    rows = np.sort(rng.choice(len(x), NUM_REFERENCE, replace=False))
    columns = zip(FEATURES, x[rows].T, strict=True)
    features = {name: describe(v.tolist(), group[rows], len(x)) for name, v in columns}
    return Reference(features=features, outputs={}), [
        episodes()[index] for index in order[len(order) // 2 :]
    ]


def one_of_each(rng: np.random.Generator, live: list[np.ndarray]) -> np.ndarray:
    """A reading of each of many rooms."""
    return np.array([room[rng.integers(len(room))] for room in live])


def one_after_another(rng: np.random.Generator, live: list[np.ndarray]) -> np.ndarray:
    """One room's readings, and then the next one's."""
    return np.concatenate(live)[:4000]


def side_by_side(rng: np.random.Generator, live: list[np.ndarray]) -> np.ndarray:
    """Four rooms at once, whose requests take turns."""
    queues = [np.concatenate(live[start::4]) for start in range(4)]
    return np.stack([queue[:1000] for queue in queues], axis=1).reshape(-1, len(FEATURES))


def findings(reference: Reference, x: np.ndarray) -> list[Finding]:
    columns = zip(FEATURES, x.T.tolist(), strict=True)
    return compare(reference, Window(dict(columns)), ALPHA)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("arrange", [one_of_each, one_after_another, side_by_side])
def test_100_undrifted_windows_and_one_that_has_drifted(arrange) -> None:
    rng = np.random.default_rng(5)
    alarms = []
    for _ in range(10):
        reference, live = split(rng)
        for _ in range(10):
            rng.shuffle(live)
            found = findings(reference, arrange(rng, live))
            assert any(one.status != "unknown" for one in found)
            alarms.append(found[0].status == "drift")
    assert sum(alarms) <= unlucky(len(alarms), ALPHA), f"{sum(alarms)} of {len(alarms)}"

    shifted = arrange(rng, live).copy()
    shifted[:, FEATURES.index("gas_val")] += 250  # ppm of CO2
    found = findings(reference, shifted)
    assert (found[0].name, found[0].status) == ("gas_val", "drift")
    assert [one.status for one in found].count("drift") == 1


def test_the_slack_is_small() -> None:
    assert unlucky(100, ALPHA) == 5


# What is told


def report(*found: Finding) -> DriftReport:
    status, reason = conclude(found, ALPHA)
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    return DriftReport(
        "fire", 3, "live records of fire", status, reason, ALPHA, 5, 500, 2, at, at, found
    )  # fmt: skip


def test_exit_codes_and_json() -> None:
    reference = reference_of(normal(2000, 0))
    drifted = report(only(reference, normal(500, 1, mean=2)))
    assert (drifted.status, drifted.exit_code, DriftFound.exit_code) == ("drift", 7, 7)
    assert drifted.drifted() == ["x"]
    assert json.loads(drifted.to_json())["since"] == "2026-05-01T12:00:00+00:00"
    assert report(only(reference, normal(500, 1))).exit_code == 0
    assert report(only(reference, normal(5, 1))).exit_code == 0


def test_the_page_shows_the_worst_first_and_escapes() -> None:
    hostile = "<script>alert(1)</script>"
    x = describe(normal(2000, 0), np.arange(2000), 2000)
    labels = describe([hostile, "b"] * 200, np.arange(400), 400)
    reference = Reference(features={"fine": x, hostile: x}, outputs={"label": labels})
    window = Window(
        {"fine": normal(500, 1), hostile: normal(500, 2, mean=3)},
        {"label": [hostile, "b"] * 100},
    )
    page = render_drift_report(report(*compare(reference, window, ALPHA)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert page.index("&lt;script&gt;") < page.index("<th>fine</th>")
    assert "http" not in page.replace("http-equiv", "")  # needs nothing beside itself
    assert page.count("<svg") == 3
    empty = dataclasses.replace(report(), status="unknown", reason="no requests", findings=())
    assert "no requests" in render_drift_report(empty)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("7d", datetime(2026, 4, 24, 12, tzinfo=UTC)),
        ("90m", datetime(2026, 5, 1, 10, 30, tzinfo=UTC)),
        ("2026-04-01", datetime(2026, 4, 1, tzinfo=UTC)),
        ("2026-04-01T10:00:00+02:00", datetime(2026, 4, 1, 8, tzinfo=UTC)),
    ],
)
def test_since(text: str, time: datetime) -> None:
    assert parse_since(text, datetime(2026, 5, 1, 12, tzinfo=UTC)) == time


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "yesterday", "999999w"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(SpecError, match=r"is no time; give 7d, 12h, 30m, or a date"):
        parse_since(text)
