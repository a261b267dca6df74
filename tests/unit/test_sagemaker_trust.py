from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.targets.sagemaker.trust import trust

SERVICE = {"Service": "sagemaker.amazonaws.com"}
SOURCE = {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def allow(**fields: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": SERVICE, "Action": "sts:AssumeRole", **fields}


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


@pytest.mark.parametrize(
    "document",
    [
        policy(allow()),
        {"Statement": allow()},  # one statement, without a list
        policy(allow(Principal="*")),
        policy(allow(Principal={"AWS": "*"})),
        policy(allow(Principal={"Service": ["ec2.amazonaws.com", "sagemaker.amazonaws.com"]})),
        policy(allow(Action=["sts:TagSession", "sts:AssumeRole"])),
        policy(allow(Action="sts:*")),
        policy(allow(Action="STS:Assume*")),
        policy(allow(Condition=SOURCE), allow()),
        policy(allow(), allow(Effect="Deny", Principal={"AWS": "arn:aws:iam::1:user/eve"})),
        policy(allow(), allow(Effect="Deny", Action="sts:AssumeRoleWithSAML")),
    ],
)
def test_a_policy_that_trusts_sagemaker(document: dict[str, Any]) -> None:
    assert trust(document).is_given is True
    assert trust(document).why == "it trusts sagemaker.amazonaws.com"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (
            policy(allow(Principal={"Service": "ec2.amazonaws.com", "AWS": "123456789012"})),
            "it trusts 123456789012, ec2.amazonaws.com alone, not sagemaker.amazonaws.com",
        ),
        (policy(), "it trusts nobody, not sagemaker.amazonaws.com"),
        (None, "it trusts nobody, not sagemaker.amazonaws.com"),
        ({"Statement": "none"}, "it trusts nobody, not sagemaker.amazonaws.com"),
        (
            policy(allow(Action="sts:TagSession")),
            "it lets sagemaker.amazonaws.com do no sts:AssumeRole",
        ),
        (
            policy(allow(), allow(Effect="Deny", Principal="*")),
            "it denies sts:AssumeRole to sagemaker.amazonaws.com",
        ),
        (
            policy(
                allow(),
                {"Effect": "Deny", "NotPrincipal": {"AWS": "123456789012"}, "Action": "sts:*"},
            ),
            "it denies sts:AssumeRole to sagemaker.amazonaws.com",
        ),
    ],
)
def test_a_policy_that_does_not(document: Any, why: str) -> None:
    found = trust(document)
    assert found.is_given is False
    assert found.why == why


def test_conditions_are_not_guessed() -> None:
    arn = {"ArnLike": {"aws:SourceArn": "arn:aws:sagemaker:*"}}
    found = trust(policy(allow(Condition=SOURCE | arn)))
    assert found.is_given is None
    assert found.why == (
        "it trusts sagemaker.amazonaws.com only if aws:SourceAccount and aws:SourceArn are as its "
        "condition says"
    )
    found = trust(policy(allow(), allow(Effect="Deny", Condition=SOURCE)))
    assert found.is_given is None
    assert found.why == (
        "it denies sts:AssumeRole to sagemaker.amazonaws.com if aws:SourceAccount is as its "
        "condition says"
    )


# What is said of a statement, and whether it is about SageMaker taking on the role.
PRINCIPALS = st.sampled_from(
    [
        ({"Principal": SERVICE}, True),
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": ["*"]}}, True),
        ({"Principal": {"Service": ["lambda.amazonaws.com", "sagemaker.amazonaws.com"]}}, True),
        ({"Principal": {"Service": "sagemaker.amazonaws.com.evil"}}, False),
        ({"Principal": {"AWS": "sagemaker.amazonaws.com"}}, False),
        ({"Principal": {"Federated": "*"}}, False),
        ({}, False),
        ({"NotPrincipal": SERVICE}, False),
        ({"NotPrincipal": {"AWS": "123456789012"}}, True),
    ]
)
ACTIONS = st.sampled_from(
    [
        ({"Action": "sts:AssumeRole"}, True),
        ({"Action": ["sts:SetSourceIdentity", "sts:assumerole"]}, True),
        ({"Action": "*"}, True),
        ({"Action": "sts:AssumeRol?"}, True),
        ({"Action": "sts:AssumeRole?"}, False),
        ({"Action": "sts:Assume"}, False),
        ({"Action": "sts.AssumeRole"}, False),
        ({"Action": []}, False),
        ({}, False),
        ({"NotAction": "sts:AssumeRole"}, False),
        ({"NotAction": "iam:*"}, True),
    ]
)


@st.composite
def statements(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[str, bool, bool]]:
    principal, is_principal = draw(PRINCIPALS)
    action, is_action = draw(ACTIONS)
    effect = draw(st.sampled_from(["Allow", "Deny"]))
    is_conditional = draw(st.booleans())
    statement = {"Effect": effect, **principal, **action}
    if is_conditional:
        statement["Condition"] = SOURCE
    return statement, (effect, is_principal and is_action, is_conditional)


@given(st.lists(statements(), max_size=5))
def test_what_denies_outweighs_what_allows(
    drawn: list[tuple[dict[str, Any], tuple[str, bool, bool]]],
) -> None:
    about = {(effect, conditional) for _, (effect, matches, conditional) in drawn if matches}
    allowed = {("Allow", False), ("Allow", True)} & about
    expected: bool | None
    if ("Deny", False) in about or not allowed:
        expected = False
    elif ("Deny", True) in about or ("Allow", False) not in about:
        expected = None
    else:
        expected = True
    assert trust(policy(*(statement for statement, _ in drawn))).is_given is expected
