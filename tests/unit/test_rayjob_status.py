from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.result import Status
from ray_jobs.targets.rayjob_status import RayJobState, identity_of, made_at, parse_rayjob

ODD = "the Kubernetes API says of it what no KubeRay of this version would: "
NAMES = ("jobStatus", "jobDeploymentStatus", "reason", "message", "startTime", "endTime",
         "failed")  # fmt: skip
WORDS = ("", "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "Running", "Complete",
         "Failed",
         "Retrying", "Initializing", "Waiting", "2026-11-30T07:00:00Z", "no time")  # fmt: skip


def rayjob(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "fire-night", "uid": "u-1"}, "status": status}


@pytest.mark.parametrize(
    ("deployment", "job", "expected"),
    [
        ("", "", "PENDING"),
        ("Initializing", "", "PENDING"),
        ("Waiting", "", "PENDING"),
        ("Suspended", "", "PENDING"),
        ("Retrying", "", "PENDING"),
        ("Retrying", "FAILED", "PENDING"),
        ("Running", "", "PENDING"),
        ("Running", "PENDING", "PENDING"),
        ("Running", "RUNNING", "RUNNING"),
        ("Running", "SUCCEEDED", "RUNNING"),  # not judged yet
        ("Running", "FAILED", "RUNNING"),  # it may be tried again
        ("Complete", "SUCCEEDED", "SUCCEEDED"),
        ("Complete", "STOPPED", "STOPPED"),
        ("Complete", "FAILED", "FAILED"),
        ("Failed", "FAILED", "FAILED"),
        ("Failed", "", "FAILED"),  # a deadline
        ("ValidationFailed", "", "FAILED"),
    ],
)
def test_what_kuberay_says(deployment: str, job: str, expected: Status) -> None:
    state = parse_rayjob(rayjob(jobDeploymentStatus=deployment, jobStatus=job))
    assert (state.status, state.fault) == (expected, None)


def test_one_that_kuberay_has_not_looked_at_is_pending() -> None:
    assert parse_rayjob({"metadata": {"uid": "u"}}).status == "PENDING"


def test_all_that_is_told_is_read() -> None:
    message = "Job entrypoint command failed with exit code 5, last available logs:\nerror: no disk"
    state = parse_rayjob(
        rayjob(
            jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", failed=2,
            message=message, startTime="2026-11-30T07:00:00Z", endTime="2026-11-30T08:00:00Z",
        )
    )  # fmt: skip
    assert state == RayJobState(
        "FAILED", "Failed", "AppFailed", message, datetime(2026, 11, 30, 7, tzinfo=UTC),
        datetime(2026, 11, 30, 8, tzinfo=UTC), exit_code=5, num_failed=2, uid="u-1",
    )  # fmt: skip


def test_one_that_goes_on_has_no_end() -> None:
    state = parse_rayjob(
        rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING", endTime="2026-11-30T08:00:00Z")
    )
    assert state.ended_at is None


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ("503", "the answer is a str"),
        ({}, "its metadata is a NoneType"),
        ({"metadata": {}, "status": []}, "its status is a list"),
        (rayjob(jobStatus=3), "its status.jobStatus is a int"),
        (
            rayjob(jobDeploymentStatus="Dreaming"),
            "jobDeploymentStatus 'Dreaming' with jobStatus ''",
        ),
        (
            rayjob(jobDeploymentStatus="Complete", jobStatus="RUNNING"),
            "jobDeploymentStatus 'Complete' with jobStatus 'RUNNING'",
        ),
        (rayjob(startTime="yesterday"), "its status.startTime is 'yesterday'"),
        (rayjob(startTime="2026-11-30T07:00:00"), "its status.startTime is '2026-11-30T07:00:00'"),
    ],
)
def test_what_cannot_be_read_is_a_failure_that_says_so(found: Any, fault: str) -> None:
    state = parse_rayjob(found)
    assert (state.status, state.fault) == ("FAILED", ODD + fault)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
STATUSES = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, st.sampled_from(WORDS) | JSON))


@given(JSON | st.fixed_dictionaries({"metadata": st.just({"uid": "u"}), "status": STATUSES | JSON}))
def test_whatever_comes_is_a_state(found: Any) -> None:
    state = parse_rayjob(found)
    assert state.status in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED")
    assert state.num_failed >= 0
    assert (state.fault is None) or state.status == "FAILED"
    made_at(found)
    assert all(isinstance(value, str) for value in identity_of(found).values())


def test_success_is_only_what_both_fields_say() -> None:
    for deployment in WORDS:
        for job in WORDS:
            state = parse_rayjob(rayjob(jobDeploymentStatus=deployment, jobStatus=job))
            is_success = (deployment, job) == ("Complete", "SUCCEEDED")
            assert (state.status == "SUCCEEDED") is is_success
