from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ray_jobs.spec import load_spec
from ray_jobs.targets.sagemaker.aws import Aws
from ray_jobs.targets.sagemaker.checks import examine
from ray_jobs.targets.sagemaker.parallel_checks import ParallelChecks, Unknown
from tests.unit.moto_account import (
    ACCOUNT,
    READS,
    REGION,
    ROLE,
    USER,
    look,
    moto_account,  # noqa: F401 - a fixture
    row,
)

if TYPE_CHECKING:
    from tests.sagemaker_emulator.aws import AWS

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]


@pytest.mark.usefixtures("moto_account")
def test_a_row_each_and_nothing_is_changed() -> None:
    checklist, account = look()
    assert [check.name for check in checklist.checks] == [
        "region",
        "credentials",
        "storage",
        "bucket",
        "bucket writable",
        "role",
        "role's trust",
        "image",
        "quota",
        "variables",
        "request",
        "cost",
        "sagemaker:CreateTrainingJob",
        "sagemaker:DescribeTrainingJob",
        "sagemaker:StopTrainingJob",
        "sagemaker:ListTrainingJobs",
        "sagemaker:Search",
        "sagemaker:ListTags",
        "sagemaker:AddTags",
        "logs:DescribeLogStreams",
        "logs:GetLogEvents",
        "iam:PassRole",
        "s3:ListBucket",
        "s3:GetObject",
        "ecr:DescribeImages",
        "role: S3",
        "role: ECR",
        "role: CloudWatch",
    ]
    assert [check for check in checklist.checks if not check.passed] == []
    found = {check.name: check.found for check in checklist.checks}
    assert found["region"] == REGION
    assert found["credentials"] == f"account {ACCOUNT}, as {USER}"
    assert found["storage"] == "s3://runs/team"
    assert found["bucket"] == "runs is readable, in eu-west-1"
    assert found["bucket writable"] == "IAM allows it"
    assert found["role"] == ROLE
    assert found["role's trust"] == "it trusts sagemaker.amazonaws.com"
    assert re.fullmatch(r"sha256:\w{12}, .* MiB, pushed on \d{4}-\d\d-\d\d", found["image"])
    assert found["quota"] == (
        "ml.m5.xlarge: 4 training job usage; 1 needed, beside what runs already"
    )
    assert found["variables"] == "none"
    assert found["request"].startswith("SageMaker's model of CreateTrainingJob takes it")
    assert found["cost"] == "0.26 USD (0.257 USD/hour on 2023-12-31) for 60 min, as estimated"
    assert found["iam:PassRole"] == "allowed: IAM allows it"
    assert found["role: S3"] == "s3:ListBucket, s3:GetObject, s3:PutObject"
    assert account.sources == {USER, ROLE}
    assert [call for call in account.calls if not READS.match(call)] == []


@pytest.mark.usefixtures("moto_account")
def test_what_the_description_lacks_is_said_and_what_needs_it_is_not_checked() -> None:
    checklist, _ = look(storage="./runs", role_arn=None, image_uri=None)
    assert {check.name: check.found for check in checklist.failed} == {
        "storage": "target sagemaker cannot keep a run in storage './runs'; give --storage "
        "s3://<bucket>/<prefix>, or set sagemaker.bucket",
        "role": "set sagemaker.role_arn to the ARN of a role that trusts sagemaker.amazonaws.com "
        "and may use the bucket",
        "image": "build the Dockerfile, push it to ECR, and set sagemaker.image_uri to "
        "<account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>",
    }
    needs = {
        check.name: check.found.removeprefix("not checked: it needs ")
        for check in checklist.checks
        if check.passed is None
    }
    assert needs == {
        "bucket": "storage",
        "bucket writable": "bucket",
        "role's trust": "role",
        "request": "storage",
        "iam:PassRole": "role",
        "s3:ListBucket": "storage",
        "s3:GetObject": "storage",
        "ecr:DescribeImages": "image",
        "role: S3": "role",
        "role: ECR": "role",
        "role: CloudWatch": "role",
    }
    assert row(checklist, "sagemaker:CreateTrainingJob").passed


@pytest.mark.usefixtures("moto_account")
def test_without_a_region_nobody_is_asked() -> None:
    checklist, account = look(region=None, image_uri=None)
    assert "set sagemaker.region" in row(checklist, "region").found
    assert row(checklist, "credentials").found == "not checked: it needs region"
    assert account.calls == []


@pytest.mark.usefixtures("moto_account")
def test_refused_credentials_are_one_fault() -> None:
    checklist, account = look(lambda it: it.deny("GetCallerIdentity", code="ExpiredToken"))
    assert [check.name for check in checklist.failed] == ["credentials"]
    assert "AWS refuses these credentials" in row(checklist, "credentials").found
    assert "sign in again" in row(checklist, "credentials").found
    assert row(checklist, "bucket").found == "not checked: it needs credentials"
    assert account.calls == ["GetCallerIdentity"]


# What is sent, and what it costs


@pytest.mark.usefixtures("moto_account")
def test_a_request_that_sagemaker_would_refuse() -> None:
    checklist, _ = look(instance_type="ml.z9.huge", usd_per_hour=1.0)
    assert row(checklist, "request").passed is False
    assert row(checklist, "request").found == (
        "ResourceConfig.InstanceType: 'ml.z9.huge' is not one that SageMaker knows"
    )


@pytest.mark.usefixtures("moto_account")
def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE", "north")
    checklist, _ = look(env=["SITE"])
    assert row(checklist, "variables").found == "SITE"
    checklist, _ = look(env=["SITE", "FOREST"])
    assert row(checklist, "variables").passed is False
    assert "sagemaker.env names FOREST, which is not set here" in row(checklist, "variables").found
    assert row(checklist, "request").found == "not checked: it needs variables"


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("seconds", "fields", "passed", "words"),
    [
        (
            None,
            {"max_run_s": 7200},
            True,
            "0.51 USD (0.257 USD/hour on 2023-12-31) for 2.0 h, if it trains until it is stopped",
        ),
        (3600, {"spot": True}, True, "at most 0.26 USD"),
        (
            3600,
            {"instance_type": "ml.c5.xlarge"},
            None,
            "unknown: prices.csv has no price of ml.c5.xlarge in eu-west-1; set "
            "sagemaker.usd_per_hour to what AWS charges you",
        ),
        (
            3600,
            {"instance_type": "ml.c5.xlarge", "max_cost_usd": 1.0},
            False,
            "sagemaker.max_cost_usd cannot be kept: prices.csv has no price",
        ),
        (7200, {"max_cost_usd": 0.257}, False, "sagemaker.max_cost_usd=0.257 stops it after"),
        (None, {"max_cost_usd": 0.001}, False, "too little to train"),
        (None, {"max_cost_usd": 0.257}, True, "0.25 USD (0.257 USD/hour on 2023-12-31) for 58 min"),
        (
            None,
            {"max_parallel_jobs": 2, "max_cost_usd": 1.542},  # 5 members, and one that combines
            True,
            "for 58 min, if it trains until it is stopped, for each of 6 jobs",
        ),
        (
            3600,
            {"max_parallel_jobs": 2, "max_cost_usd": 0.06},
            False,
            "of sagemaker.max_cost_usd=0.06 this job has 0.01 USD",
        ),
    ],
)
def test_what_it_will_cost(
    seconds: float | None, fields: dict[str, Any], passed: bool | None, words: str
) -> None:
    checklist, _ = look(seconds=seconds, **fields)
    assert row(checklist, "cost").passed is passed
    assert words in row(checklist, "cost").found


# Side by side


def test_checks_wait_for_those_that_they_need() -> None:
    from concurrent.futures import ThreadPoolExecutor

    both_at_it = threading.Barrier(2, timeout=30)

    def meet() -> str:
        both_at_it.wait()
        return "met"

    def give_up() -> str:
        raise Unknown("nobody knows")

    with ThreadPoolExecutor(3) as pool:
        checks = ParallelChecks(pool)
        checks.make("slow", meet)
        checks.make("needs slow", lambda: "after it", needs=["slow"])
        checks.make("beside", meet)
        checks.make("unknown", give_up)
        checks.make("needs unknown", lambda: pytest.fail("it was looked at"), needs=["unknown"])
        rows = checks.checklist().checks
    assert [(check.name, check.passed, check.found) for check in rows] == [
        ("slow", True, "met"),
        ("needs slow", True, "after it"),
        ("beside", True, "met"),
        ("unknown", None, "nobody knows"),
        ("needs unknown", None, "not checked: it needs unknown"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_account_over_the_wire_is_left_as_it_is(aws: AWS) -> None:
    settings = {"role_arn": aws.role_arn, "image_uri": aws.image_uri}
    overrides = [f"sagemaker.{key}={value}" for key, value in settings.items()]
    spec = load_spec("fire", storage=f"s3://{aws.bucket}/team", overrides=overrides)
    checklist = examine(Aws(spec.sagemaker), spec, seconds=60)
    assert checklist.failed == []
    passed = {check.name for check in checklist.checks if check.passed}
    assert passed >= {"bucket", "bucket writable", "role", "role's trust", "image", "request"}
    assert passed >= {"sagemaker:Search", "sagemaker:ListTags", "sagemaker:DescribeTrainingJob"}
    assert aws.recorded_mutations() == []
    assert aws.emulator.calls, "they were made over the wire"
    assert aws.proxy.calls
