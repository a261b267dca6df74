"""The reference kept with a version: what it says of values, and what clusters do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_models import fire_folder, gcode_folder, new_folder, waste_folder

from ray_jobs.errors import JobFailed
from ray_jobs.models.bundle_files import INDEX, add_files, read_index, write_index
from ray_jobs.monitoring.reference import (
    REFERENCE,
    Labels,
    Numbers,
    bin_counts,
    describe,
    design_effect,
    numbers,
    read_reference,
)
from ray_jobs.serving.model import load_model


def alone(num: int) -> np.ndarray:
    return np.arange(num)


def test_every_workload_has_one() -> None:
    for folder, outputs in (
        (fire_folder(), {"probability"}),
        (waste_folder(), {"label", "confidence"}),
        (gcode_folder(), {"command", "parameters"}),
    ):
        reference = read_reference(folder)
        scorer = load_model(folder).scorer  # whole: both files are in its index
        inputs = scorer.example()
        assert reference.features.keys() == scorer.observe(inputs, None).features.keys()
        assert reference.outputs.keys() == outputs
        assert {REFERENCE, "example.json"} <= read_index(folder)["files"].keys()


def test_numbers_are_described() -> None:
    found = describe([*range(1, 1001), None], alone(1001), 1001)
    assert isinstance(found, Numbers)
    assert (found.low, found.high, found.num, found.num_missing) == (1, 1000, 1001, 1)
    assert found.edges == tuple(range(100, 1000, 100))
    assert found.shares == pytest.approx([0.1] * 10)
    assert found.effective_size == 1000
    assert found.group_effect is None
    assert (found.quantiles[0], found.quantiles[-1]) == (3, 998)


def test_labels_are_described() -> None:
    found = describe(["b", "a", "b"], alone(3), 3)
    assert isinstance(found, Labels)
    assert found.counts == {"b": 2, "a": 1}
    assert (found.num, found.effective_size) == (3, 3)


def test_all_missing_and_all_equal() -> None:
    nothing = describe([None, None], alone(2), 2)
    assert isinstance(nothing, Numbers)
    assert (nothing.num_missing, nothing.effective_size, nothing.quantiles) == (2, 0, ())
    constant = describe([5.0] * 40, alone(40), 40)
    assert isinstance(constant, Numbers)
    assert constant.edges == (5.0,)
    assert constant.shares == (1.0, 0.0)
    assert constant.effective_size == 40


def test_rows_of_groups_count_less() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(100), 10)
    of_groups = np.repeat(rng.normal(size=100), 10)
    found = describe(of_groups.tolist(), group, 5000)
    assert 60 <= found.effective_size <= 110  # as many as there are groups
    assert found.group_effect == pytest.approx(50, rel=0.4)  # of 50 rows, 10 were drawn
    free = describe(rng.normal(size=1000).tolist(), group, 5000)
    assert free.effective_size > 400


@given(st.lists(st.floats(-1e9, 1e9) | st.none(), min_size=1, max_size=40), st.integers(1, 9))
def test_shares_and_sizes_hold_together(values: list[float | None], num_groups: int) -> None:
    found = describe(values, np.arange(len(values)) % num_groups, len(values))
    assert isinstance(found, Numbers)
    known = numbers(values)[~np.isnan(numbers(values))]
    assert 0 <= found.effective_size <= len(known)
    if len(known):
        assert math.isclose(sum(found.shares), 1.0)
        assert bin_counts(known, found.edges).sum() == len(known)
        assert found.low <= found.quantiles[0] <= found.quantiles[-1] <= found.high


def test_the_design_effect_is_within_its_bounds() -> None:
    half = np.arange(40)[:, None] < 20
    assert design_effect(half, np.arange(40)) == pytest.approx(1)
    assert design_effect(half, np.arange(40) // 20) == pytest.approx(39)  # each of one value
    assert design_effect(half, np.arange(40) % 20) == 1


def test_rounding_is_no_difference() -> None:
    given_by_float32 = float(np.float32(25.1))
    assert numbers([given_by_float32])[0] == numbers([25.1])[0]
    assert np.isnan(numbers([None, "x"])).all()
    assert numbers([0.0, -1.234567891e-7, math.inf]).tolist() == [0.0, -1.23457e-7, math.inf]
    assert not np.isnan(numbers([5e-324, 1e-300, 1e300])).any()


def test_a_bundle_without_a_reference() -> None:
    folder = new_folder()
    with pytest.raises(JobFailed, match=r"has no reference.json to compare with; train it again"):
        read_reference(folder)
    (folder / REFERENCE).write_text('{"features": {"x": {"kind": "other"}}, "outputs": {}}')
    with pytest.raises(JobFailed, match=r"malformed reference.json \(features.x: .*train it again"):
        read_reference(folder)


def test_files_are_added_to_an_index() -> None:
    folder = new_folder()
    write_index(folder, {"workload": "fire"}, {})
    add_files(folder, {"a.json": b"1"})
    assert read_index(folder)["workload"] == "fire"
    (folder / "a.json").write_bytes(b"2")
    with pytest.raises(JobFailed, match=r"a\.json is not the one that was trained"):
        add_files(folder, {"b.json": b"1"})
    assert not (folder / "b.json").exists()
    assert (folder / INDEX).exists()
