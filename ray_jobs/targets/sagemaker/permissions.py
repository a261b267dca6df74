"""What a user or a role may do on AWS, as far as that can be known while nothing is changed.

IAM's own simulation answers, where it may be asked. Else a harmless call does, where there is one:
any answer but a refusal shows that it is allowed. What neither tells is not known.

Source: IAM API Reference, "SimulatePrincipalPolicy".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray_jobs.errors import EmberlineError
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, is_denied
from ray_jobs.targets.sagemaker.trust import SERVICE

Resource = Literal[
    "any", "job", "endpoint", "endpoint config", "model",
    "role", "bucket", "objects", "logs", "log stream", "repository",
]  # fmt: skip
Actions = Mapping[str, Resource]

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_NOBODYS = "emberline-doctor"  # a training job, a log stream and an object that nobody has
_PASSING_STATUS = 429

# What whoever starts, follows and stops jobs needs, beside writing to the bucket.
OWN_JOBS: Actions = {
    "sagemaker:CreateTrainingJob": "job",
    "sagemaker:DescribeTrainingJob": "job",
    "sagemaker:StopTrainingJob": "job",
    "sagemaker:ListTrainingJobs": "any",
    "sagemaker:Search": "any",
    "sagemaker:ListTags": "job",
    "sagemaker:AddTags": "job",
    "logs:DescribeLogStreams": "logs",
    "logs:GetLogEvents": "log stream",
}
# What whoever deploys models needs beside it.
OWN_ENDPOINTS: Actions = {
    "sagemaker:CreateModel": "model",
    "sagemaker:DescribeModel": "model",
    "sagemaker:DeleteModel": "model",
    "sagemaker:CreateEndpointConfig": "endpoint config",
    "sagemaker:DescribeEndpointConfig": "endpoint config",
    "sagemaker:DeleteEndpointConfig": "endpoint config",
    "sagemaker:CreateEndpoint": "endpoint",
    "sagemaker:UpdateEndpoint": "endpoint",
    "sagemaker:DescribeEndpoint": "endpoint",
    "sagemaker:InvokeEndpoint": "endpoint",
    "sagemaker:DeleteEndpoint": "endpoint",
    "sagemaker:ListTags": "endpoint",
    "sagemaker:AddTags": "endpoint",
    "sagemaker:ListEndpoints": "any",
    "sagemaker:ListEndpointConfigs": "any",
    "sagemaker:ListModels": "any",
    "application-autoscaling:DescribeScalableTargets": "any",
}
OWN_SCALING: Actions = {
    "application-autoscaling:RegisterScalableTarget": "any",
    "application-autoscaling:DeregisterScalableTarget": "any",
    "application-autoscaling:PutScalingPolicy": "any",
    "application-autoscaling:DescribeScalingPolicies": "any",
}
OWN_ROLE: Actions = {"iam:PassRole": "role"}
OWN_BUCKET: Actions = {"s3:ListBucket": "bucket", "s3:GetObject": "objects"}
OWN_IMAGE: Actions = {"ecr:DescribeImages": "repository"}

# What the execution role needs: Amazon SageMaker AI Developer Guide, "CreateTrainingJob API:
# Execution Role Permissions".
ROLE_BUCKET: Actions = {
    "s3:ListBucket": "bucket",
    "s3:GetObject": "objects",
    "s3:PutObject": "objects",
}
ROLE_IMAGE: Actions = {
    "ecr:GetAuthorizationToken": "any",
    "ecr:BatchCheckLayerAvailability": "repository",
    "ecr:GetDownloadUrlForLayer": "repository",
    "ecr:BatchGetImage": "repository",
}
ROLE_LOGS: Actions = {
    "logs:CreateLogGroup": "logs",
    "logs:DescribeLogStreams": "logs",
    "logs:CreateLogStream": "log stream",
    "logs:PutLogEvents": "log stream",
    "cloudwatch:PutMetricData": "any",
}
ROLE_NETWORK: Actions = {
    "ec2:CreateNetworkInterface": "any",
    "ec2:CreateNetworkInterfacePermission": "any",
    "ec2:DeleteNetworkInterface": "any",
    "ec2:DeleteNetworkInterfacePermission": "any",
    "ec2:DescribeNetworkInterfaces": "any",
    "ec2:DescribeVpcs": "any",
    "ec2:DescribeDhcpOptions": "any",
    "ec2:DescribeSubnets": "any",
    "ec2:DescribeSecurityGroups": "any",
}


@dataclass(frozen=True)
class Caller:
    """Whose credentials these are."""

    account: str
    arn: str

    @property
    def partition(self) -> str:
        """`aws`, `aws-cn` or `aws-us-gov`."""
        return self.arn.split(":")[1]

    @property
    def is_root(self) -> bool:
        return self.arn.endswith(":root")


@dataclass(frozen=True)
class Scope:
    """What the permissions of one job, or one endpoint and its parts, are asked for; what is not
    known of it is empty."""

    caller: Caller
    region: str
    job: str  # its name, or the endpoint's
    role_arn: str = ""
    bucket: str = ""
    prefix: str = ""
    registry: str = ""
    repository: str = ""

    def permissions(self, actions: Actions) -> list[Permission]:
        return [Permission(action, self._arn(resource)) for action, resource in actions.items()]

    @property
    def condition_keys(self) -> dict[str, str]:
        """What the calls of a job carry, as far as policies often ask for it."""
        return {
            "aws:RequestedRegion": self.region,
            "aws:SecureTransport": "true",
            "iam:PassedToService": SERVICE,
            "s3:prefix": f"{self.prefix}/".lstrip("/"),
        }

    def _arn(self, resource: Resource) -> str:
        arn, account = f"arn:{self.caller.partition}", self.caller.account
        logs = f"{arn}:logs:{self.region}:{account}:log-group:{LOG_GROUP}:log-stream:"
        bucket = f"{arn}:s3:::{self.bucket}"
        sagemaker = f"{arn}:sagemaker:{self.region}:{account}"
        return {
            "any": "*",
            "job": f"{sagemaker}:training-job/{self.job}",
            "endpoint": f"{sagemaker}:endpoint/{self.job}",
            "endpoint config": f"{sagemaker}:endpoint-config/{self.job}",
            "model": f"{sagemaker}:model/{self.job}",
            "role": self.role_arn,
            "bucket": bucket,
            "objects": "/".join(filter(None, (bucket, self.prefix, _NOBODYS))),
            "logs": logs,
            "log stream": logs + _NOBODYS,
            "repository": f"{arn}:ecr:{self.region}:{self.registry}:repository/{self.repository}",
        }[resource]


@dataclass(frozen=True)
class Permission:
    """One action on one resource."""

    action: str
    resource: str


@dataclass(frozen=True)
class Decision:
    """Whether an action is allowed, and who says so."""

    permission: Permission
    allowed: bool | None  # None: not known
    how: str
    is_silent: bool = False  # IAM's policies say nothing of it: the resource's own may allow it


def whoami(aws: Aws) -> Caller:
    """Whose credentials these are.

    Raises:
        PreflightError: there are none, or they are refused.
        RetryableError: AWS does not answer.
    """
    with answers():
        found = aws.client("sts").get_caller_identity()
    return Caller(found["Account"], found["Arn"])


def decide(aws: Aws, scope: Scope, actions: Actions) -> list[Decision]:
    """What the owner of these credentials may do, by simulation or by harmless calls.

    Raises nothing: what is not known is a decision without an answer.
    """
    permissions, caller = scope.permissions(actions), scope.caller
    if caller.is_root:
        return [Decision(one, True, "this is the account's root user") for one in permissions]
    source = _policy_source(aws, caller)
    refusal = f"it does not simulate {caller.arn}"
    if source is not None:
        try:
            found = simulate(aws, source, scope, actions)
        except EmberlineError:
            refusal = "iam:SimulatePrincipalPolicy is not answered"
        else:
            return [_probed(aws, one) if one.is_silent else one for one in found]
    unknown = f"IAM is not to be asked ({refusal}), and no harmless call tells it"
    return [_probed(aws, Decision(one, None, unknown)) for one in permissions]


def simulate(aws: Aws, source: str, scope: Scope, actions: Actions) -> list[Decision]:
    """What IAM's policies say of the user or role `source`: one call for each resource.

    Raises:
        PreflightError: the simulation is denied.
        RetryableError: it is not answered.
    """
    permissions = scope.permissions(actions)
    context = [
        {"ContextKeyName": key, "ContextKeyType": "string", "ContextKeyValues": [value]}
        for key, value in scope.condition_keys.items()
    ]
    decided = {}
    for resource in dict.fromkeys(permission.resource for permission in permissions):
        with answers():
            pages = aws.client("iam").get_paginator("simulate_principal_policy")
            for page in pages.paginate(
                PolicySourceArn=source,
                ActionNames=[one.action for one in permissions if one.resource == resource],
                ResourceArns=[resource],
                ContextEntries=context,
            ):
                for found in page["EvaluationResults"]:
                    permission = Permission(found["EvalActionName"], resource)
                    decided[permission] = _simulated(permission, found)
    return [
        decided.get(one, Decision(one, None, "IAM's simulation does not tell it"))
        for one in permissions
    ]


def _simulated(permission: Permission, found: Mapping[str, Any]) -> Decision:
    said = found["EvalDecision"]
    if said == "allowed":
        return Decision(permission, True, "IAM allows it")
    if said == "explicitDeny":
        return Decision(permission, False, "a policy denies it")
    missing = sorted(found.get("MissingContextValues") or [])
    if missing:
        return Decision(permission, None, f"it depends on {', '.join(missing)}")
    has_own_policy = permission.action.startswith(("s3:", "ecr:")) and permission.resource != "*"
    return Decision(permission, False, "no policy allows it", is_silent=has_own_policy)


def _policy_source(aws: Aws, caller: Caller) -> str | None:
    """The user or role whose policies decide; None: the simulation takes no such identity.

    A session's ARN names its role without the role's path, which only the role itself tells.
    """
    kind, _, name = caller.arn.split(":", 5)[5].partition("/")
    if kind == "user":
        return f"arn:{caller.partition}:iam::{caller.account}:user/{name}"
    if kind != "assumed-role":
        return None
    role = name.split("/")[0]
    try:
        with answers():
            return aws.client("iam").get_role(RoleName=role)["Role"]["Arn"]
    except EmberlineError:
        return f"arn:{caller.partition}:iam::{caller.account}:role/{role}"


# Harmless calls


def _probed(aws: Aws, decision: Decision) -> Decision:
    """What a harmless call shows; the decision itself if there is none, or it is not answered."""
    from botocore.exceptions import BotoCoreError, ClientError

    permission = decision.permission
    call = _PROBES.get(permission.action)
    if call is None:
        return decision
    try:
        call(aws, permission.resource)
    except ClientError as error:
        if is_denied(error):
            return Decision(permission, False, f"{error.operation_name} is denied")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        if status >= _PASSING_STATUS or "Throttl" in code_of(error):
            return decision
    except BotoCoreError:
        return decision
    return Decision(permission, True, "a harmless call was answered")


def _list_jobs(aws: Aws, _: str) -> None:
    aws.client("sagemaker").list_training_jobs(MaxResults=1)


def _search(aws: Aws, _: str) -> None:
    aws.client("sagemaker").search(Resource="TrainingJob", MaxResults=1)


def _describe_job(aws: Aws, _: str) -> None:
    aws.client("sagemaker").describe_training_job(TrainingJobName=_NOBODYS)


def _list_tags(aws: Aws, job: str) -> None:
    aws.client("sagemaker").list_tags(ResourceArn=job)


def _describe_streams(aws: Aws, _: str) -> None:
    aws.client("logs").describe_log_streams(logGroupName=LOG_GROUP, limit=1)


def _read_log(aws: Aws, _: str) -> None:
    aws.client("logs").get_log_events(logGroupName=LOG_GROUP, logStreamName=_NOBODYS, limit=1)


def _list_bucket(aws: Aws, bucket: str) -> None:
    aws.client("s3").list_objects_v2(Bucket=bucket.split(":", 5)[5], MaxKeys=1)


def _head_object(aws: Aws, objects: str) -> None:
    bucket, _, key = objects.split(":", 5)[5].partition("/")
    aws.client("s3").head_object(Bucket=bucket, Key=key)


def _describe_images(aws: Aws, repository: str) -> None:
    registry, name = repository.split(":", 5)[4:]
    aws.client("ecr").describe_images(
        registryId=registry, repositoryName=name.removeprefix("repository/"), maxResults=1
    )


_PROBES: Mapping[str, Callable[[Aws, str], None]] = {
    "sagemaker:ListTrainingJobs": _list_jobs,
    "sagemaker:Search": _search,
    "sagemaker:DescribeTrainingJob": _describe_job,
    "sagemaker:ListTags": _list_tags,
    "logs:DescribeLogStreams": _describe_streams,
    "logs:GetLogEvents": _read_log,
    "s3:ListBucket": _list_bucket,
    "s3:GetObject": _head_object,
    "ecr:DescribeImages": _describe_images,
}
