from __future__ import annotations

import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.targets.names import ray_submission_id, rayjob_name, sagemaker_name

NAMED = [sagemaker_name, ray_submission_id, rayjob_name]
VALID = {
    sagemaker_name: re.compile(r"(?=.{1,63}$)[A-Za-z0-9]+(-[A-Za-z0-9]+)*"),
    ray_submission_id: re.compile(r"(?=.{1,100}$)[A-Za-z0-9][A-Za-z0-9._-]*"),
    rayjob_name: re.compile(r"(?=.{1,47}$)[a-z]([a-z0-9-]*[a-z0-9])?"),
}

# Run ids, others that lie close together (they differ in what a service does not take), and texts
# that the checks before should have kept out.
run_ids = (
    st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=63)
    | st.text("aA1-_.", min_size=1, max_size=63)
    | st.text(max_size=80)
)
workloads = st.sampled_from(["fire", "waste", "gcode", "a-b", "a_b", "a", "1"])


def test_ten_thousand_random_names_are_valid_and_distinct() -> None:
    given_for: dict[str, tuple[str, str]] = {}
    seen = set()

    @settings(max_examples=10_000, database=None)
    @given(workload=workloads, run_id=run_ids)
    def are_valid_and_distinct(workload: str, run_id: str) -> None:
        seen.add((workload, run_id))
        for named, valid in VALID.items():
            name = named(workload, run_id)
            assert valid.fullmatch(name), name
            key = f"{named.__name__} {name}"
            assert given_for.setdefault(key, (workload, run_id)) == (workload, run_id)

    are_valid_and_distinct()
    assert len(given_for) == len(NAMED) * len(seen) > 0.8 * len(NAMED) * 10_000


def test_ten_thousand_jobs_of_runs_have_valid_and_distinct_names() -> None:
    given_for: dict[str, tuple[str, str, int, str | None]] = {}
    seen = set()

    @settings(max_examples=10_000, database=None)
    @given(
        workload=workloads,
        run_id=run_ids,
        attempt=st.integers(1, 12),
        member=st.none() | st.text("ab1_-", max_size=40) | st.sampled_from(["1", "2", "combine"]),
    )
    def are_valid_and_distinct(
        workload: str, run_id: str, attempt: int, member: str | None
    ) -> None:
        job = (workload, run_id, attempt, member)
        seen.add(job)
        name = sagemaker_name(workload, run_id, attempt, member)
        assert VALID[sagemaker_name].fullmatch(name), name
        assert given_for.setdefault(name, job) == job

    are_valid_and_distinct()
    assert len(given_for) == len(seen) > 0.8 * 10_000


@pytest.mark.parametrize("named", NAMED)
def test_a_valid_name_is_kept(named: Callable[..., str]) -> None:
    assert named("fire", "20261121-161159-ab12") == "fire-20261121-161159-ab12"


@pytest.mark.parametrize(
    ("named", "run_id", "kept"),
    [
        (sagemaker_name, "a_b", "fire-a-b-"),
        (sagemaker_name, "a--b", "fire-a-b-"),
        (sagemaker_name, "a-", "fire-a-"),
        (sagemaker_name, "x" * 63, "fire-" + "x" * 47 + "-"),
        (sagemaker_name, "x" * 46 + "-" + "y" * 16, "fire-" + "x" * 46 + "-"),
        (ray_submission_id, "a-", "fire-a-"),
        (rayjob_name, "Night.Run", "fire-night-run-"),
        (rayjob_name, "x" * 63, "fire-" + "x" * 31 + "-"),
    ],
)
def test_what_can_be_kept_is_kept_before_a_digest(
    named: Callable[..., str], run_id: str, kept: str
) -> None:
    assert re.fullmatch(f"{kept}[0-9a-f]{{10}}", named("fire", run_id))


def test_a_name_that_ends_like_a_digest_is_not_another_runs() -> None:
    changed = sagemaker_name("fire", "a_b")
    assert sagemaker_name("fire", changed.removeprefix("fire-")) != changed


def test_where_the_workload_ends_is_told_apart() -> None:
    assert sagemaker_name("a-b", "c") != sagemaker_name("a", "b-c")


def test_the_jobs_of_a_run_have_names_that_can_be_read() -> None:
    digest = "-[0-9a-f]{10}"
    for words, kept in [
        ({"attempt": 2}, "fire-night-2"),
        ({"member": "lstm_classifier"}, "fire-night-lstm-classifier"),
        ({"member": "lstm_classifier", "attempt": 3}, "fire-night-lstm-classifier-3"),
    ]:
        name = sagemaker_name("fire", "night", **words)
        assert re.fullmatch(kept + digest, name), name
    name = sagemaker_name("fire", "x" * 63, 2, "m" * 40)
    assert re.fullmatch("fire-x+-m{20}-2" + digest, name)


def test_a_member_is_not_taken_for_an_attempt() -> None:
    named = {sagemaker_name("fire", "n", 2), sagemaker_name("fire", "n", member="2")}
    assert len(named | {sagemaker_name("fire", "n-2"), sagemaker_name("fire", "n", 2, "2")}) == 4


def test_attempts_have_names_of_their_own() -> None:
    names = [ray_submission_id("fire", "night", attempt) for attempt in (1, 2, 10)]
    assert names == ["fire-night", "fire-night~2", "fire-night~10"]
