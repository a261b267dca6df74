from __future__ import annotations

import pytest

from tests.unit.moto_account import (
    ACCOUNT,
    DENIED,
    READS,
    REGION,
    ROLE,
    SILENT,
    USER,
    Account,
    both,
    decide,
    give_policy,
    look,
    moto_account,  # noqa: F401 - a fixture
    no_simulation,
    row,
)


@pytest.mark.usefixtures("moto_account")
def test_a_permission_that_is_missing_is_a_row_with_its_fix() -> None:
    checklist, _ = look(
        decide(
            sagemaker_CreateTrainingJob=SILENT,
            iam_PassRole=DENIED,
            sagemaker_AddTags={**SILENT, "MissingContextValues": ["aws:RequestTag/team"]},
        )
    )
    create = row(checklist, "sagemaker:CreateTrainingJob")
    assert create.passed is False
    job = "fire-20000101-000000-0000"
    assert create.found == (
        f"{USER} may not do it on arn:aws:sagemaker:eu-west-1:{ACCOUNT}:training-job/{job}: no "
        "policy allows it"
    )
    assert create.fix == "have sagemaker:CreateTrainingJob allowed to it in IAM"
    assert row(checklist, "iam:PassRole").found == (
        f"{USER} may not do it on {ROLE}: a policy denies it"
    )
    tags = row(checklist, "sagemaker:AddTags")
    assert (tags.passed, tags.found) == (None, "not known: it depends on aws:RequestTag/team")
    assert [check.name for check in checklist.failed] == [create.name, "iam:PassRole"]


@pytest.mark.usefixtures("moto_account")
def test_what_iam_does_not_allow_a_bucket_may() -> None:
    checklist, account = look(decide(s3_GetObject=SILENT, s3_ListBucket=SILENT))
    assert row(checklist, "s3:GetObject").found == "allowed: a harmless call was answered"
    assert "HeadObject" in account.calls
    checklist, _ = look(
        both(decide(s3_GetObject=SILENT), lambda it: it.deny("HeadObject", code="403"))
    )
    assert row(checklist, "s3:GetObject").passed is False
    assert "HeadObject is denied" in row(checklist, "s3:GetObject").found


@pytest.mark.usefixtures("moto_account")
def test_a_session_is_known_by_its_role() -> None:
    session = f"arn:aws:sts::{ACCOUNT}:assumed-role/training/ada@example.org"

    def prepare(account: Account) -> None:
        account.answers["GetCallerIdentity"] = lambda _: (200, {"Account": ACCOUNT, "Arn": session})

    checklist, account = look(prepare)
    assert account.sources == {ROLE}, "with its path, which the session does not tell"
    assert row(checklist, "credentials").found.endswith(session)
    _, account = look(both(prepare, lambda it: it.deny("GetRole")))
    assert account.sources == {f"arn:aws:iam::{ACCOUNT}:role/training", ROLE}


@pytest.mark.usefixtures("moto_account")
def test_the_root_user_is_not_simulated() -> None:
    def prepare(account: Account) -> None:
        root = f"arn:aws:iam::{ACCOUNT}:root"
        account.answers["GetCallerIdentity"] = lambda _: (200, {"Account": ACCOUNT, "Arn": root})

    checklist, account = look(prepare)
    assert row(checklist, "iam:PassRole").found == "allowed: this is the account's root user"
    assert account.sources == {ROLE}


@pytest.mark.usefixtures("moto_account")
@pytest.mark.parametrize("is_federated", [True, False])
def test_where_iam_is_not_to_be_asked_harmless_calls_tell(is_federated: bool) -> None:
    def prepare(account: Account) -> None:
        if is_federated:
            arn = f"arn:aws:sts::{ACCOUNT}:federated-user/ada"
            account.answers["GetCallerIdentity"] = lambda _: (200, {"Account": ACCOUNT, "Arn": arn})
        no_simulation(account)
        account.deny("Search", code="AccessDeniedException", status=400)
        account.deny("GetLogEvents", code="ThrottlingException", status=400)
        # Nobody has such a job: the answer shows that it was allowed to ask.
        account.deny("DescribeTrainingJob", "ListTags", code="ValidationException", status=400)

    checklist, account = look(prepare)
    found = {check.name: check.passed for check in checklist.checks if ":" in check.name}
    assert found == {
        "sagemaker:CreateTrainingJob": None,
        "sagemaker:DescribeTrainingJob": True,
        "sagemaker:StopTrainingJob": None,
        "sagemaker:ListTrainingJobs": True,
        "sagemaker:Search": False,
        "sagemaker:ListTags": True,
        "sagemaker:AddTags": None,
        "logs:DescribeLogStreams": True,
        "logs:GetLogEvents": None,
        "iam:PassRole": None,
        "s3:ListBucket": True,
        "s3:GetObject": True,
        "ecr:DescribeImages": True,
        "role: S3": None,
        "role: ECR": None,
        "role: CloudWatch": None,
    }
    assert row(checklist, "role: S3").found == (
        "not known: IAM does not say what the role may do (iam:SimulatePrincipalPolicy)"
    )
    assert "Search is denied" in row(checklist, "sagemaker:Search").found
    assert [call for call in account.calls if not READS.match(call)] == []


@pytest.mark.usefixtures("moto_account")
def test_what_the_role_may_not_do() -> None:
    checklist, _ = look(decide(s3_PutObject=DENIED, ecr_BatchGetImage=SILENT))
    assert row(checklist, "role: S3").found == (
        "the role may not s3:PutObject on arn:aws:s3:::runs/team/emberline-doctor (a policy denies "
        "it); allow it in a policy of the role"
    )
    assert row(checklist, "role: ECR").passed is False
    assert f"ecr:{REGION}:{ACCOUNT}:repository/emberline" in row(checklist, "role: ECR").found
    assert row(checklist, "role: CloudWatch").passed


@pytest.mark.usefixtures("moto_account")
def test_a_buckets_own_policy_may_allow_the_role() -> None:
    checklist, _ = look(both(decide(s3_GetObject=SILENT), give_policy))
    assert row(checklist, "role: S3").passed is None
    assert row(checklist, "role: S3").found == (
        "s3:GetObject: not known: no policy of IAM's allows it; that of "
        "arn:aws:s3:::runs/team/emberline-doctor may"
    )


@pytest.mark.usefixtures("moto_account")
def test_a_network_and_several_hosts_need_more_of_the_role() -> None:
    vpc = {"subnets": ["subnet-0a"], "security_group_ids": ["sg-0a"]}
    checklist, _ = look(decide(ec2_DescribeVpcs=SILENT), vpc=vpc, instance_count=2)
    assert "ec2:DescribeVpcs on * (no policy allows it)" in row(checklist, "role: VPC").found
    assert row(checklist, "role: S3").found.endswith("s3:DeleteObject")
