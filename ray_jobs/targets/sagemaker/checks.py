"""What must be so before a job can run on SageMaker: credentials, permissions, the bucket, the
role, the image, the quota, and what it will cost.

Nothing is created or changed: every call reads, or asks IAM what it would decide. What cannot be
known that way is a row that says so, and fails nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_jobs.checks import Check, Checklist, duration
from ray_jobs.errors import EmberlineError, PreflightError, SpecError
from ray_jobs.targets.names import sagemaker_name
from ray_jobs.targets.sagemaker import permissions as iam
from ray_jobs.targets.sagemaker import pricing, resources
from ray_jobs.targets.sagemaker.aws import Aws
from ray_jobs.targets.sagemaker.costs import max_run_s_of_part
from ray_jobs.targets.sagemaker.environment import job_environment
from ray_jobs.targets.sagemaker.parallel_checks import ParallelChecks, Unknown
from ray_jobs.targets.sagemaker.request import request_faults, storage_root, training_job_request
from ray_jobs.targets.sagemaker.trust import SERVICE, trust

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec

_NUM_THREADS = 8
_RUN_ID = "20000101-000000-0000"  # of a run that there is not, as long as those that there are


def examine(
    aws: Aws, spec: JobSpec, *, seconds: float | None = None, for_endpoint: bool = False
) -> Checklist:
    """Everything that can be known of a job before it is submitted: a row each.

    Raises nothing: what is wrong is a failed check with its fix.

    Args:
        seconds: how long the job will train, where that is estimated. None: until it is stopped.
        for_endpoint: the image is to serve, too.
    """
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="sagemaker-check") as pool:
        checks = ParallelChecks(pool)
        _Examination(aws, spec, seconds, for_endpoint).start(checks)
        return checks.checklist()


class _Examination:
    """The looks of one examination; each uses what those that it needs have found."""

    def __init__(self, aws: Aws, spec: JobSpec, seconds: float | None, for_endpoint: bool):
        self._aws, self._spec, self._seconds = aws, spec, seconds
        self._for_endpoint = for_endpoint
        self._settings = spec.sagemaker
        self._job = sagemaker_name(spec.workload, _RUN_ID)
        self._caller: iam.Caller
        self._bucket = self._prefix = ""
        self._trust_policy: Any = None

    def start(self, checks: ParallelChecks) -> None:
        settings = self._settings
        # A role or an image that is named, if not found, is enough to ask for permissions on it.
        role = [] if settings.role_arn else ["role"]
        image = [] if settings.image_uri else ["image"]
        account = ["credentials"]
        checks.make("region", lambda: self._aws.region)
        checks.make("credentials", self._look_at_caller, needs=["region"])
        checks.make("storage", self._look_at_storage)
        checks.make("bucket", self._look_at_bucket, needs=["storage", *account])
        checks.make("bucket writable", self._look_at_writing, needs=["bucket"])
        checks.make("role", self._look_at_role, needs=account if settings.role_arn else [])
        checks.make("role's trust", self._look_at_trust, needs=["role"])
        checks.make("image", self._look_at_image, needs=account if settings.image_uri else [])
        checks.make("quota", self._look_at_quotas, needs=account)
        checks.make("variables", self._look_at_variables)
        checks.make("request", self._look_at_request, needs=["storage", "variables", *role, *image])
        checks.make("cost", self._look_at_cost, needs=["region"])
        for actions, needs in (
            (iam.OWN_JOBS, account),
            (iam.OWN_ROLE, [*account, *role]),
            (iam.OWN_BUCKET, [*account, "storage"]),
            (iam.OWN_IMAGE, [*account, *image]),
        ):
            checks.make_all(list(actions), partial(self._decide, actions), needs=needs)
        for name, actions, needs in (
            ("role: S3", self._role_bucket(), [*account, *role, "storage"]),
            ("role: ECR", iam.ROLE_IMAGE, [*account, *role, *image]),
            ("role: CloudWatch", iam.ROLE_LOGS, [*account, *role]),
            *([("role: VPC", iam.ROLE_NETWORK, [*account, *role])] if settings.vpc else []),
        ):
            checks.make(name, partial(self._look_at_role_permissions, actions), needs=needs)

    # Who and where

    def _look_at_caller(self) -> str:
        self._caller = iam.whoami(self._aws)
        return f"account {self._caller.account}, as {self._caller.arn}"

    def _look_at_storage(self) -> str:
        root = storage_root(self._spec, self._settings)
        self._bucket, _, self._prefix = root.removeprefix("s3://").partition("/")
        return root

    def _look_at_bucket(self) -> str:
        return resources.look_at_bucket(self._aws, self._bucket, self._prefix)

    def _look_at_writing(self) -> str:
        """No object is written: what IAM says, or what is likely."""
        found = iam.decide(self._aws, self._scope(), {"s3:PutObject": "objects"})[0]
        may_have_policy = resources.bucket_may_have_policy(self._aws, self._bucket)
        other = "the bucket's own policy may say otherwise"
        if found.allowed:
            return f"{found.how}; {other}" if may_have_policy else found.how
        if found.allowed is False and not (found.is_silent and may_have_policy):
            raise PreflightError(f"{self._denial(found)}; {_fix(found)}, or name another bucket")
        if found.allowed is None and resources.owns_bucket(
            self._aws, self._bucket, self._caller.account
        ):
            return f"likely: it is this account's and readable, but {found.how}"
        raise Unknown(f"not known: {found.how}; {other}")

    # What the job is made of

    def _look_at_role(self) -> str:
        role_arn = self._settings.role_arn
        if role_arn is None:
            raise SpecError(
                f"set sagemaker.role_arn to the ARN of a role that trusts {SERVICE} and may use "
                "the bucket"
            )
        account = self._caller.account
        self._trust_policy = resources.read_trust_policy(self._aws, role_arn, account)
        return role_arn

    def _look_at_trust(self) -> str:
        found = trust(self._trust_policy)
        if found.is_given is None:
            raise Unknown(f"not known: {found.why}")
        if not found.is_given:
            raise PreflightError(
                f'{found.why}; add {{"Effect": "Allow", "Principal": {{"Service": "{SERVICE}"}}, '
                '"Action": "sts:AssumeRole"} to its trust policy'
            )
        return found.why

    def _look_at_image(self) -> str:
        if self._settings.image_uri is None:
            raise SpecError(
                "build the Dockerfile, push it to ECR, and set sagemaker.image_uri to "
                "<account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>"
            )
        uri = self._settings.image_uri
        return resources.look_at_image(self._aws, uri, for_endpoint=self._for_endpoint)

    def _look_at_quotas(self) -> str:
        num_jobs = min(self._settings.max_parallel_jobs or 1, len(self._members) or 1)
        return resources.look_at_quotas(self._aws, self._settings, num_jobs)

    def _look_at_variables(self) -> str:
        return ", ".join(sorted(job_environment(self._settings))) or "none"

    def _look_at_request(self) -> str:
        request = training_job_request(
            self._spec,
            self._settings,
            run_id=_RUN_ID,
            name=self._job,
            owner="emberline",
            environment=job_environment(self._settings),
        )
        faults = request_faults(request)
        if faults:
            raise SpecError("; ".join(faults))
        return f"SageMaker's model of CreateTrainingJob takes it ({len(request)} fields)"

    def _look_at_cost(self) -> str:
        settings, region = self._settings, self._aws.region
        num_parts = len(self._members) + 1 if self._members else 1
        limit_s = max_run_s_of_part(settings, region, num_parts, ())
        if self._seconds is None:
            seconds, how = float(limit_s), "if it trains until it is stopped"
            cost = pricing.cost_of_run(settings, region, seconds)
        else:
            seconds, how = self._seconds, "as estimated"
            cost = pricing.check_budget(settings, region, seconds)
        if cost.usd is None:
            raise Unknown(f"{cost}; set sagemaker.usd_per_hour to what AWS charges you")
        each = f", for each of {num_parts} jobs" if self._seconds is None and num_parts > 1 else ""
        return f"{cost} for {duration(seconds)}, {how}{each}"

    @property
    def _members(self) -> list[str]:
        """Those that have training jobs of their own."""
        members = list(self._spec.families())
        return members if self._settings.max_parallel_jobs and len(members) > 1 else []

    # Permissions

    def _decide(self, actions: iam.Actions) -> list[Check]:
        return [
            Check(found.permission.action, False, self._denial(found), _fix(found))
            if found.allowed is False
            else Check(found.permission.action, found.allowed, _said(found))
            for found in iam.decide(self._aws, self._scope(), actions)
        ]

    def _look_at_role_permissions(self, actions: iam.Actions) -> str:
        scope = self._scope()
        try:
            found = iam.simulate(self._aws, scope.role_arn, scope, actions)
        except EmberlineError:
            raise Unknown(
                "not known: IAM does not say what the role may do (iam:SimulatePrincipalPolicy)"
            ) from None
        found = [self._or_by_resource(decision) for decision in found]
        denied = [decision for decision in found if decision.allowed is False]
        if denied:
            faults = ", ".join(
                f"{one.permission.action} on {one.permission.resource} ({one.how})"
                for one in denied
            )
            raise PreflightError(f"the role may not {faults}; allow it in a policy of the role")
        unknown = [decision for decision in found if decision.allowed is None]
        if unknown:
            raise Unknown("; ".join(f"{one.permission.action}: {_said(one)}" for one in unknown))
        return ", ".join(actions)

    def _or_by_resource(self, decision: iam.Decision) -> iam.Decision:
        """Where IAM's policies are silent, a bucket's or a repository's own may allow it."""
        if not decision.is_silent:
            return decision
        if decision.permission.action.startswith("s3:"):
            may_have_policy = resources.bucket_may_have_policy(self._aws, self._bucket)
        else:
            assert self._settings.image_uri is not None
            image = resources.Image.parse(self._settings.image_uri)
            may_have_policy = resources.repository_may_have_policy(self._aws, image)
        if not may_have_policy:
            return decision
        how = f"no policy of IAM's allows it; that of {decision.permission.resource} may"
        return replace(decision, allowed=None, how=how)

    def _role_bucket(self) -> iam.Actions:
        """A job that keeps its folder on S3 itself removes old checkpoints there."""
        settings = self._settings
        if settings.instance_count > 1 or self._members:
            return {**iam.ROLE_BUCKET, "s3:DeleteObject": "objects"}
        return iam.ROLE_BUCKET

    def _scope(self) -> iam.Scope:
        scope = iam.Scope(
            self._caller,
            self._aws.region,
            self._job,
            self._settings.role_arn or "",
            self._bucket,
            self._prefix,
        )
        if self._settings.image_uri is None:
            return scope
        image = resources.Image.parse(self._settings.image_uri)
        return replace(scope, registry=image.registry, repository=image.repository)

    def _denial(self, found: iam.Decision) -> str:
        return f"{self._caller.arn} may not do it on {found.permission.resource}: {found.how}"


def _fix(found: iam.Decision) -> str:
    return f"have {found.permission.action} allowed to it in IAM"


def _said(found: iam.Decision) -> str:
    return f"allowed: {found.how}" if found.allowed else f"not known: {found.how}"
