"""An account of moto's, for the checks that are made before a job goes to SageMaker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from ray_jobs.checks import Check, Checklist
from ray_jobs.spec import load_spec
from ray_jobs.targets.sagemaker.aws import Aws
from ray_jobs.targets.sagemaker.checks import examine
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

ACCOUNT, REGION, BUCKET = "123456789012", "eu-west-1", "runs"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/training"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
IMAGE = f"{REGISTRY}/emberline:0.1.0"
USER = f"arn:aws:iam::{ACCOUNT}:user/ada"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
READS = re.compile(r"(Get|List|Describe|Head|Search|Simulate)")

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@cache
def session(region: str | None) -> Any:
    """One for all tests: it reads the models of the services once."""
    import boto3

    return boto3.Session(region_name=region)


@cache
def client(service: str, region: str = REGION) -> Any:
    """One that prepares an account, and is not noted."""
    return session(region).client(service)


class Account(Aws):
    """An account of moto's that notes every call, and may be told what to answer."""

    def __init__(self, settings: SageMakerSpec):
        super().__init__(settings)
        self.calls: list[str] = []
        self.answers: dict[str, Answer] = {
            "GetCallerIdentity": lambda _: (200, {"Account": ACCOUNT, "Arn": USER}),
            "SimulatePrincipalPolicy": self._simulate,
            "ListServiceQuotas": quotas({"ml.m5.xlarge for training job usage": 4}),
            "ListAWSDefaultServiceQuotas": quotas({}),
        }
        self.deny("ListTags", code="ValidationException", status=400)  # moto has none for jobs
        self.decisions: dict[str, dict[str, Any]] = {}  # by action: where it is not allowed
        self.sources: set[str] = set()
        self._noted: set[str] = set()

    def _session(self, region: str | None) -> Any:
        return session(region)

    def client(self, service: str) -> Any:
        with self._lock:
            client = super().client(service)
            if service not in self._noted:
                self._noted.add(service)
                client.meta.events.register("before-call", self._before_call)
        return client

    def _before_call(self, model: Any, params: dict[str, Any], **_: Any) -> Any:
        self.calls.append(model.name)
        answer = self.answers.get(model.name)
        if answer is None:
            return None
        body = params["body"]
        is_json = isinstance(body, bytes) and body.startswith(b"{")
        status, parsed = answer(json.loads(body) if is_json else body)
        parsed.setdefault("ResponseMetadata", {"HTTPStatusCode": status})
        return AWSResponse("", status, {}, None), parsed

    def _simulate(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.sources.add(body["PolicySourceArn"])
        actions = [value for key, value in body.items() if key.startswith("ActionNames.")]
        results = [
            {"EvalActionName": action, "EvalDecision": "allowed", **self.decisions.get(action, {})}
            for action in actions
        ]
        return 200, {"EvaluationResults": results, "IsTruncated": False}

    def deny(self, *operations: str, code: str = "AccessDenied", status: int = 403) -> None:
        for operation in operations:
            self.answers[operation] = lambda _: (
                status,
                {"Error": {"Code": code, "Message": "no"}},
            )


def quotas(values: dict[str, float]) -> Answer:
    """One quota a page."""
    names = ["ml.c5.xlarge for endpoint usage", *values]

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = int(body.get("NextToken", 0))
        found = {"QuotaName": names[number], "Value": values.get(names[number], 20.0)}
        rest = {"NextToken": str(number + 1)} if number + 1 < len(names) else {}
        return 200, {"Quotas": [found], **rest}

    return answer


TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


@pytest.fixture
def moto_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket, a role and an image, in this process."""
    from moto import mock_aws

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        client("iam").create_role(
            RoleName="training", Path="/team/", AssumeRolePolicyDocument=json.dumps(TRUST)
        )
        ecr = client("ecr")
        ecr.create_repository(repositoryName="emberline")
        ecr.put_image(
            repositoryName="emberline",
            imageTag="0.1.0",
            imageManifest=json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, "layers": []}),
        )
        yield


def look(
    prepare: Callable[[Account], None] = lambda _: None,
    *,
    storage: str = f"s3://{BUCKET}/team",
    seconds: float | None = 3600,
    workload: str = "fire",
    for_endpoint: bool = False,
    **sagemaker: Any,
) -> tuple[Checklist, Account]:
    settings = {"region": REGION, "role_arn": ROLE, "image_uri": IMAGE, **sagemaker}
    overrides = [f"sagemaker.{key}={json.dumps(value)}" for key, value in settings.items()]
    spec = load_spec(workload, storage=storage, overrides=overrides)
    account = Account(spec.sagemaker)
    prepare(account)
    return examine(account, spec, seconds=seconds, for_endpoint=for_endpoint), account


def row(checklist: Checklist, name: str) -> Check:
    return next(check for check in checklist.checks if check.name == name)


def give_policy(_: Account) -> None:
    policy = {"Version": "2012-10-17", "Statement": []}
    client("s3").put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))


SILENT = {"EvalDecision": "implicitDeny"}
DENIED = {"EvalDecision": "explicitDeny"}


def both(*steps: Callable[[Account], None]) -> Callable[[Account], None]:
    def prepare(account: Account) -> None:
        for step in steps:
            step(account)

    return prepare


def decide(**decisions: dict[str, Any]) -> Callable[[Account], None]:
    """`s3_PutObject=DENIED`."""
    named = {action.replace("_", ":"): found for action, found in decisions.items()}
    return lambda account: account.decisions.update(named)


def no_simulation(account: Account) -> None:
    account.deny("SimulatePrincipalPolicy")
