from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs.targets.sagemaker.resources import Image
from tests.unit.moto_account import (
    ACCOUNT,
    DENIED,
    IMAGE,
    REGION,
    REGISTRY,
    ROLE,
    SILENT,
    TRUST,
    USER,
    Account,
    both,
    client,
    decide,
    give_policy,
    look,
    moto_account,  # noqa: F401 - a fixture
    no_simulation,
    quotas,
    row,
)

# The bucket


def elsewhere() -> None:
    client("s3", "us-west-2").create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("storage", "prepare", "words"),
    [
        (
            "s3://nowhere-1/x",
            lambda _: None,
            "there is no bucket 'nowhere-1'; make it in eu-west-1, or name another with --storage "
            "s3://<bucket>/<prefix> or sagemaker.bucket",
        ),
        (
            "s3://far-away",
            lambda _: elsewhere(),
            "bucket 'far-away' is in us-west-2, the job in eu-west-1, and SageMaker takes a bucket "
            "of its own region: set sagemaker.region=us-west-2, or name another bucket",
        ),
        (
            "s3://runs",
            lambda it: it.deny("HeadBucket", code="403"),
            "AWS denies HeadBucket: this user or role lacks what HeadBucket needs; have it allowed",
        ),
        (
            "s3://runs",
            lambda it: it.deny("ListObjectsV2"),
            "AWS denies ListObjectsV2: this user or role lacks",
        ),
    ],
)
def test_a_bucket_that_cannot_be_used(
    storage: str, prepare: Callable[[Account], None], words: str
) -> None:
    checklist, _ = look(prepare, storage=storage)
    assert row(checklist, "bucket").passed is False
    assert words in row(checklist, "bucket").found
    assert row(checklist, "bucket writable").found == "not checked: it needs bucket"


def of_another(account: Account) -> None:
    """The bucket is readable, and somebody else's."""
    no_simulation(account)
    calls: list[int] = []

    def head(_: Any) -> tuple[int, dict[str, Any]]:
        calls.append(1)
        if len(calls) == 1:
            return 200, {"BucketRegion": REGION}
        return 403, {"Error": {"Code": "403", "Message": "Forbidden"}}

    account.answers["HeadBucket"] = head


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("prepare", "passed", "words"),
    [
        (give_policy, True, "IAM allows it; the bucket's own policy may say otherwise"),
        (
            decide(s3_PutObject=DENIED),
            False,
            f"{USER} may not do it on arn:aws:s3:::runs/team/emberline-doctor: a policy denies it; "
            "have s3:PutObject allowed to it in IAM, or name another bucket",
        ),
        (decide(s3_PutObject=SILENT), False, "no policy allows it; have s3:PutObject allowed"),
        (
            both(decide(s3_PutObject=SILENT), give_policy),
            None,
            "not known: no policy allows it; the bucket's own policy may say otherwise",
        ),
        (
            no_simulation,
            True,
            "likely: it is this account's and readable, but IAM is not to be asked "
            "(iam:SimulatePrincipalPolicy is not answered), and no harmless call tells it",
        ),
        (of_another, None, "not known: IAM is not to be asked"),
    ],
)
def test_whether_the_bucket_can_be_written_without_writing(
    prepare: Callable[[Account], None], passed: bool | None, words: str
) -> None:
    checklist, account = look(prepare)
    assert row(checklist, "bucket writable").passed is passed
    assert words in row(checklist, "bucket writable").found
    assert "PutObject" not in account.calls


# The role, the image


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("role_arn", "prepare", "passed", "words"),
    [
        (
            "arn:aws:iam::999999999999:role/other",
            lambda _: None,
            False,
            "arn:aws:iam::999999999999:role/other is of account 999999999999, but these "
            f"credentials are of {ACCOUNT}: set sagemaker.role_arn to a role of that account, or "
            "AWS_PROFILE",
        ),
        (
            f"arn:aws:iam::{ACCOUNT}:role/lost",
            lambda _: None,
            False,
            f"there is no role 'lost' in account {ACCOUNT}; make it, or set sagemaker.role_arn to "
            "one that is there",
        ),
        (
            f"arn:aws:iam::{ACCOUNT}:role/training",
            lambda _: None,
            False,
            f"there is no arn:aws:iam::{ACCOUNT}:role/training; set sagemaker.role_arn={ROLE}",
        ),
        (
            ROLE,
            lambda it: it.deny("GetRole"),
            None,
            f"{ROLE} cannot be read: iam:GetRole is denied",
        ),
    ],
)
def test_a_role_that_cannot_be_used(
    role_arn: str, prepare: Callable[[Account], None], passed: bool | None, words: str
) -> None:
    checklist, _ = look(prepare, role_arn=role_arn)
    assert row(checklist, "role").passed is passed
    assert row(checklist, "role").found == words
    assert row(checklist, "role's trust").found == "not checked: it needs role"
    assert row(checklist, "iam:PassRole").passed, "its name is enough to ask"


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("change", "passed", "words"),
    [
        (
            {"Principal": {"Service": "lambda.amazonaws.com"}},
            False,
            "it trusts lambda.amazonaws.com alone, not sagemaker.amazonaws.com; add "
            '{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": '
            '"sts:AssumeRole"} to its trust policy',
        ),
        (
            {"Condition": {"StringEquals": {"aws:SourceAccount": "1"}}},
            None,
            "not known: it trusts sagemaker.amazonaws.com only if aws:SourceAccount is as its "
            "condition says",
        ),
    ],
)
def test_a_role_that_sagemaker_may_not_take_on(
    change: dict[str, Any], passed: bool | None, words: str
) -> None:
    document = {**TRUST, "Statement": [{**TRUST["Statement"][0], **change}]}  # type: ignore[dict-item]
    client("iam").update_assume_role_policy(
        RoleName="training", PolicyDocument=json.dumps(document)
    )
    checklist, _ = look()
    assert row(checklist, "role's trust").passed is passed
    assert row(checklist, "role's trust").found == words


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("image", "prepare", "passed", "words"),
    [
        (
            f"{REGISTRY}/embers:0.1.0",
            lambda _: None,
            False,
            f"there is no repository {REGISTRY}/embers:0.1.0; build the Dockerfile and push it, or "
            "set sagemaker.image_uri",
        ),
        (
            f"{REGISTRY}/emberline:0.2.0",
            lambda _: None,
            False,
            f"there is no image {REGISTRY}/emberline:0.2.0; build the Dockerfile and push it, or "
            "set sagemaker.image_uri",
        ),
        (f"{REGISTRY}/emberline", lambda _: None, False, "there is no image"),  # :latest
        (
            f"{REGISTRY}/emberline@sha256:{'0' * 64}",
            lambda _: None,
            False,
            "there is no image",
        ),
        (
            IMAGE,
            lambda it: it.deny("DescribeImages"),
            None,
            "it cannot be looked at: ecr:DescribeImages is denied",
        ),
    ],
)
def test_an_image_that_cannot_be_used(
    image: str, prepare: Callable[[Account], None], passed: bool | None, words: str
) -> None:
    checklist, _ = look(prepare, image_uri=image)
    assert row(checklist, "image").passed is passed
    assert words in row(checklist, "image").found


@pytest.mark.usefixtures("moto_account")
def test_an_image_in_a_format_that_endpoints_refuse() -> None:
    def answer(_: Any) -> tuple[int, dict[str, Any]]:
        index = "application/vnd.oci.image.index.v1+json"
        found = {"imageDigest": f"sha256:{'a' * 64}", "imageManifestMediaType": index}
        return 200, {"imageDetails": [found]}

    checklist, _ = look(lambda it: it.answers.update(DescribeImages=answer))
    assert row(checklist, "image").passed
    assert row(checklist, "image").found == (
        "sha256:aaaaaaaaaaaa, in OCI's format, which SageMaker refuses for an endpoint: docker "
        "buildx build --provenance=false --output type=docker makes Docker's"
    )
    checklist, _ = look(lambda it: it.answers.update(DescribeImages=answer), for_endpoint=True)
    assert row(checklist, "image").passed is False
    assert "the image is in OCI's format, which SageMaker refuses" in row(checklist, "image").found


@pytest.mark.usefixtures("moto_account")
def test_an_image_of_another_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    checklist, _ = look(region=None)
    assert row(checklist, "image").found == (
        "the image is in eu-west-1, the job in us-west-2, and SageMaker pulls from the region it "
        "trains in: push it there, or set sagemaker.region or sagemaker.image_uri"
    )


def test_the_parts_of_an_image() -> None:
    digest = f"sha256:{'0' * 64}"
    assert Image.parse(IMAGE) == Image(ACCOUNT, REGION, "emberline", "0.1.0", None)
    assert Image.parse(f"{REGISTRY}/a/b") == Image(ACCOUNT, REGION, "a/b", "latest", None)
    assert Image.parse(f"{REGISTRY}/a@{digest}") == Image(ACCOUNT, REGION, "a", None, digest)


# The quota


def has(values: dict[str, float], operation: str = "ListServiceQuotas") -> Callable[..., None]:
    def prepare(account: Account) -> None:
        account.answers["ListServiceQuotas"] = quotas({})
        account.answers[operation] = quotas(values)

    return prepare


ON_DEMAND, SPOT, POOL = (
    f"ml.m5.xlarge for {use} usage"
    for use in ("training job", "spot training job", "training warm pool")
)


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize(
    ("values", "operation", "fields", "passed", "words"),
    [
        (
            {ON_DEMAND: 1},
            "ListServiceQuotas",
            {"instance_count": 2},
            False,
            f"'{ON_DEMAND}' is 1 in eu-west-1, and 2 are needed: ask for more in Service Quotas, "
            "or take another sagemaker.instance_type or fewer of them (sagemaker.instance_count, "
            "sagemaker.max_parallel_jobs)",
        ),
        ({ON_DEMAND: 0}, "ListServiceQuotas", {}, False, f"'{ON_DEMAND}' is 0 in eu-west-1"),
        ({ON_DEMAND: 5}, "ListServiceQuotas", {"max_parallel_jobs": 9}, True, "5 needed"),
        ({ON_DEMAND: 5}, "ListServiceQuotas", {"max_parallel_jobs": 4}, True, "4 needed"),
        (
            {ON_DEMAND: 3},
            "ListServiceQuotas",
            {"max_parallel_jobs": 2, "instance_count": 2},
            False,
            "and 4 are needed",
        ),
        ({ON_DEMAND: 9, SPOT: 0}, "ListServiceQuotas", {"spot": True}, False, f"'{SPOT}' is 0"),
        (
            {ON_DEMAND: 9, POOL: 0},
            "ListServiceQuotas",
            {"keep_alive_s": 600},
            False,
            f"'{POOL}' is 0",
        ),
        ({ON_DEMAND: 2}, "ListAWSDefaultServiceQuotas", {}, True, "2 training job usage"),
        (
            {SPOT: 2},
            "ListServiceQuotas",
            {},
            None,
            f"not known: Service Quotas has no '{ON_DEMAND}' in eu-west-1; look there whether the "
            "instance type is offered",
        ),
    ],
)
def test_the_quota_of_the_instance_type(
    values: dict[str, float],
    operation: str,
    fields: dict[str, Any],
    passed: bool | None,
    words: str,
) -> None:
    checklist, _ = look(has(values, operation), **fields)
    assert row(checklist, "quota").passed is passed
    assert words in row(checklist, "quota").found


@pytest.mark.usefixtures("moto_account")
def test_a_quota_that_is_not_shown() -> None:
    checklist, _ = look(lambda it: it.deny("ListServiceQuotas", code="AccessDeniedException"))
    assert row(checklist, "quota").passed is None
    assert "not known: AWS denies ListServiceQuotas" in row(checklist, "quota").found
