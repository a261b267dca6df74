"""What must be so before a model can be deployed to SageMaker, and what it will cost.

Nothing is created or changed: every call reads, or asks IAM what it would decide. What an endpoint
needs as a training job does is looked at as for a training job.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.checks import Check, Checklist
from ray_jobs.deployments.base import Release
from ray_jobs.deployments.sagemaker import endpoints
from ray_jobs.deployments.sagemaker.change import others
from ray_jobs.deployments.sagemaker.names import endpoint_name
from ray_jobs.deployments.sagemaker.request import Plan, make_plan
from ray_jobs.deployments.sagemaker.scaling import scaling_of
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.errors import EmberlineError, PreflightError
from ray_jobs.targets.sagemaker import permissions as iam
from ray_jobs.targets.sagemaker.aws import Aws, answers
from ray_jobs.targets.sagemaker.checks import examine
from ray_jobs.targets.sagemaker.parallel_checks import ParallelChecks, Unknown
from ray_jobs.targets.sagemaker.pricing import TABLE, hosting_price
from ray_jobs.targets.sagemaker.request import storage_root
from ray_jobs.targets.sagemaker.resources import read_quotas
from ray_jobs.tracking.models import LocatedModel

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec

_NUM_THREADS = 8
_AS_FOR_JOBS = (
    "region", "credentials", "storage", "bucket", "bucket writable", "role", "role's trust",
    "image", "iam:PassRole", "s3:ListBucket", "s3:GetObject", "role: S3", "role: ECR", "role: VPC",
)  # fmt: skip


def examine_deployment(
    aws: Aws, spec: JobSpec, model: str, deployment: DeploymentSpec
) -> Checklist:
    """Everything that can be known of a deployment before it is made: a row each.

    Raises nothing: what is wrong is a failed check with its fix.
    """
    found = examine(aws, spec, for_endpoint=True).checks
    shared = [check for check in found if check.name in _AS_FOR_JOBS]
    if any(check.passed is False for check in shared if check.name in ("region", "credentials")):
        return Checklist(shared)
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="endpoint-check") as pool:
        checks = ParallelChecks(pool)
        _Examination(aws, spec, model, deployment).start(checks)
        return Checklist([*shared, *checks.checklist().checks])


class _Examination:
    """The looks of one examination that are an endpoint's own."""

    def __init__(self, aws: Aws, spec: JobSpec, model: str, deployment: DeploymentSpec):
        self._aws, self._spec, self._model, self._deployment = aws, spec, model, deployment
        self._settings = deployment.sagemaker
        self._endpoint = endpoint_name(deployment.name_for(model))

    def start(self, checks: ParallelChecks) -> None:
        checks.make("endpoint", self._look_at_endpoint)
        checks.make("request", self._look_at_request)
        checks.make("quota", self._look_at_quota)
        if self._settings.alarms:
            checks.make("alarms", self._look_at_alarms)
        checks.make("cost", self._look_at_cost)
        actions = {**iam.OWN_ENDPOINTS}
        if scaling_of(self._settings) is not None:
            actions |= iam.OWN_SCALING
        checks.make_all(list(actions), lambda: self._decide(actions))

    def _look_at_endpoint(self) -> str:
        there = endpoints.describe(self._aws, self._endpoint)
        if there is None:
            return f"{self._endpoint} will be made"
        if not there.is_ours:
            raise others(self._endpoint)
        return f"{self._endpoint} is {there.service_status} and will go over to the new version"

    def _look_at_request(self) -> str:
        return f"SageMaker's model takes it, with {' and '.join(sorted(self._plan().variants))}"

    def _plan(self) -> Plan:
        """Of a version that there is not, and of its challenger where one is asked for."""
        release = Release(LocatedModel(self._model, 1, None, None, {}, ""), Path("0" * 64))
        return make_plan(
            release,
            self._deployment,
            self._spec.sagemaker,
            challenger=release if self._deployment.challenger else None,
            root=storage_root(self._spec, self._spec.sagemaker),
            owner="emberline",
        )

    def _look_at_quota(self) -> str:
        """Source: Service Quotas, Amazon SageMaker: "ml.m5.large for endpoint usage"."""
        name = f"{self._settings.instance_type} for endpoint usage"
        try:
            value = read_quotas(self._aws, [name]).get(name)
        except EmberlineError as error:
            raise Unknown(f"not known: {error}") from None
        if value is None:
            raise Unknown(
                f"not known: Service Quotas has no {name!r} in {self._aws.region}; look there "
                "whether the instance type is offered"
            )
        # Blue/green: the fleet before stays until the new one has taken over.
        needed = 2 * self._settings.instances[1] * self._num_variants
        if value < needed / 2:
            raise PreflightError(
                f"{name!r} is {value:g} in {self._aws.region}, and {needed // 2} are needed: ask "
                "for more in Service Quotas, or take another deployment.sagemaker.instance_type or "
                "fewer of them (deployment.sagemaker.instance_count)"
            )
        return f"{value:g} {name}; {needed // 2} needed, and {needed} while a change goes on"

    def _look_at_alarms(self) -> str:
        names = self._settings.alarms
        with answers():
            found = self._aws.client("cloudwatch").describe_alarms(
                AlarmNames=names, AlarmTypes=["MetricAlarm", "CompositeAlarm"]
            )
        alarms = [*found.get("MetricAlarms", []), *found.get("CompositeAlarms", [])]
        known = {alarm["AlarmName"]: alarm["StateValue"] for alarm in alarms}
        missing = [name for name in names if name not in known]
        if missing:
            raise PreflightError(
                f"CloudWatch has no alarm {missing[0]!r} in {self._aws.region}; make it, or take "
                "it out of deployment.sagemaker.alarms"
            )
        ringing = [name for name in names if known[name] == "ALARM"]
        if ringing:
            raise PreflightError(
                f"the alarm {ringing[0]!r} is on already, which takes every change back; look at "
                "it first"
            )
        return ", ".join(f"{name} is {known[name]}" for name in names)

    def _look_at_cost(self) -> str:
        settings, region = self._settings, self._aws.region
        price = hosting_price(settings.instance_type, region, settings.usd_per_hour)
        if price is None:
            raise Unknown(
                f"unknown: {TABLE.name} has no price for hosting on {settings.instance_type} in "
                f"{region}; set deployment.sagemaker.usd_per_hour to what AWS charges you"
            )
        low, high = (price.usd_per_hour * self._num_variants * n for n in settings.instances)
        span = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        return f"{span} USD/hour for as long as it is there ({price.note} an instance)"

    @property
    def _num_variants(self) -> int:
        return 2 if self._deployment.challenger else 1

    def _decide(self, actions: iam.Actions) -> list[Check]:
        caller = iam.whoami(self._aws)
        scope = iam.Scope(caller, self._aws.region, self._endpoint)
        return [
            Check(
                found.permission.action,
                found.allowed,
                {True: "allowed: ", False: f"{caller.arn} may not: ", None: "not known: "}[
                    found.allowed
                ]
                + found.how,
                f"have {found.permission.action} allowed to it in IAM" * (found.allowed is False),
            )
            for found in iam.decide(self._aws, scope, actions)
        ]
