"""What a job uses of an account: its bucket, its role, its image and its quotas. Looked at, and
left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.checks import in_gib
from ray_jobs.errors import EmberlineError, PreflightError
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, is_denied, is_missing
from ray_jobs.targets.sagemaker.parallel_checks import Unknown
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

# Source: https://github.com/aws/amazon-sagemaker-feedback/issues/180
_OCI = (
    "in OCI's format, which SageMaker refuses for an endpoint: docker buildx build "
    "--provenance=false --output type=docker makes Docker's"
)
_NO_POLICY = ("NoSuchBucketPolicy", "RepositoryPolicyNotFoundException")


@dataclass(frozen=True)
class Image:
    """An image in ECR, by the parts of its URI."""

    registry: str  # the account
    region: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, uri: str) -> Image:
        """Of a URI that `SageMakerSpec` takes."""
        host, _, path = uri.partition("/")
        registry, _, _, region = host.split(".")[:4]
        repository, at, digest = path.partition("@")
        if at:
            return cls(registry, region, repository, None, digest)
        repository, _, tag = path.partition(":")
        return cls(registry, region, repository, tag or "latest", None)


def look_at_bucket(aws: Aws, bucket: str, prefix: str) -> str:
    """Raises PreflightError: it is not there, not in the job's region, or not readable."""
    from botocore.exceptions import ClientError

    s3, region = aws.client("s3"), aws.region
    with answers():
        try:
            where = s3.head_bucket(Bucket=bucket).get("BucketRegion")
        except ClientError as error:
            if is_missing(error):
                raise PreflightError(
                    f"there is no bucket {bucket!r}; make it in {region}, or name another with "
                    "--storage s3://<bucket>/<prefix> or sagemaker.bucket"
                ) from None
            raise
        if where and where != region:
            raise PreflightError(
                f"bucket {bucket!r} is in {where}, the job in {region}, and SageMaker takes a "
                f"bucket of its own region: set sagemaker.region={where}, or name another bucket"
            )
        s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/".lstrip("/"), MaxKeys=1)
    return f"{bucket} is readable, in {where or 'a region that it does not tell'}"


def owns_bucket(aws: Aws, bucket: str, account: str) -> bool:
    """Raises as `answers`."""
    from botocore.exceptions import ClientError

    with answers():
        try:
            aws.client("s3").head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
        except ClientError as error:
            if is_denied(error):
                return False
            raise
    return True


def bucket_may_have_policy(aws: Aws, bucket: str) -> bool:
    """Whether it has one of its own, or does not show it. Raises RetryableError: no answer."""
    return _may_have_policy(lambda: aws.client("s3").get_bucket_policy(Bucket=bucket))


def repository_may_have_policy(aws: Aws, image: Image) -> bool:
    """Whether it has one of its own, or does not show it. Raises RetryableError: no answer."""
    return _may_have_policy(
        lambda: aws.client("ecr").get_repository_policy(
            registryId=image.registry, repositoryName=image.repository
        )
    )


def _may_have_policy(get_policy: Callable[[], object]) -> bool:
    from botocore.exceptions import ClientError

    with answers():
        try:
            get_policy()
        except ClientError as error:
            return code_of(error) not in _NO_POLICY
    return True


def read_trust_policy(aws: Aws, role_arn: str, account: str) -> Any:
    """The policy that says who may take on the role.

    Raises:
        PreflightError: there is no such role in this account.
        Unknown: this user may not read it.
    """
    from botocore.exceptions import ClientError

    owner, name = role_arn.split(":")[4], role_arn.rpartition("/")[2]
    if owner != account:
        raise PreflightError(
            f"{role_arn} is of account {owner}, but these credentials are of {account}: set "
            "sagemaker.role_arn to a role of that account, or AWS_PROFILE"
        )
    with answers():
        try:
            role = aws.client("iam").get_role(RoleName=name)["Role"]
        except ClientError as error:
            if code_of(error) == "NoSuchEntity":
                raise PreflightError(
                    f"there is no role {name!r} in account {account}; make it, or set "
                    "sagemaker.role_arn to one that is there"
                ) from None
            if is_denied(error):
                raise Unknown(f"{role_arn} cannot be read: iam:GetRole is denied") from None
            raise
    if role["Arn"] != role_arn:
        raise PreflightError(f"there is no {role_arn}; set sagemaker.role_arn={role['Arn']}")
    return role.get("AssumeRolePolicyDocument")


def look_at_image(aws: Aws, uri: str, *, for_endpoint: bool = False) -> str:
    """The image, in words.

    Raises:
        PreflightError: it is not there, or in another region, or no endpoint takes its format.
        Unknown: it is not shown.
    """
    from botocore.exceptions import ClientError

    image = Image.parse(uri)
    if image.region != aws.region:
        raise PreflightError(
            f"the image is in {image.region}, the job in {aws.region}, and SageMaker pulls from "
            "the region it trains in: push it there, or set sagemaker.region or "
            "sagemaker.image_uri"
        )
    wanted = {"imageDigest": image.digest} if image.digest else {"imageTag": image.tag}
    with answers():
        try:
            found = aws.client("ecr").describe_images(
                registryId=image.registry, repositoryName=image.repository, imageIds=[wanted]
            )["imageDetails"][0]
        except ClientError as error:
            if code_of(error) in ("RepositoryNotFoundException", "ImageNotFoundException"):
                what = "repository" if code_of(error).startswith("Repository") else "image"
                raise PreflightError(
                    f"there is no {what} {uri}; build the Dockerfile and push it, or set "
                    "sagemaker.image_uri"
                ) from None
            if is_denied(error):
                raise Unknown("it cannot be looked at: ecr:DescribeImages is denied") from None
            raise
    parts = [str(found.get("imageDigest", uri))[: len("sha256:") + 12]]
    if "imageSizeInBytes" in found:  # not of an index of several images
        parts.append(in_gib(found["imageSizeInBytes"]))
    if "imagePushedAt" in found:
        parts.append(f"pushed on {found['imagePushedAt']:%Y-%m-%d}")
    if ".oci." in found.get("imageManifestMediaType", ""):
        if for_endpoint:
            raise PreflightError(f"the image is {_OCI}; push that")
        parts.append(_OCI)
    return ", ".join(parts)


def look_at_quotas(aws: Aws, settings: SageMakerSpec, num_jobs: int) -> str:
    """Whether so many jobs at once may have their instances.

    Source: Service Quotas, Amazon SageMaker: "ml.m5.xlarge for training job usage" and the like.

    Raises:
        PreflightError: a quota is too small.
        Unknown: there is none of that name, or it is not shown.
    """
    use = "spot training job" if settings.spot else "training job"
    uses = [use, *(["training warm pool"] if settings.keep_alive_s else [])]
    names = [f"{settings.instance_type} for {use} usage" for use in uses]
    try:
        quotas = read_quotas(aws, names)
    except EmberlineError as error:
        raise Unknown(f"not known: {error}") from None
    needed = settings.instance_count * num_jobs
    for name, value in quotas.items():
        if value < needed:
            raise PreflightError(
                f"{name!r} is {value:g} in {aws.region}, and {needed} are needed: ask for more in "
                "Service Quotas, or take another sagemaker.instance_type or fewer of them "
                "(sagemaker.instance_count, sagemaker.max_parallel_jobs)"
            )
    missing = [name for name in names if name not in quotas]
    if missing:
        raise Unknown(
            f"not known: Service Quotas has no {missing[0]!r} in {aws.region}; look there whether "
            "the instance type is offered"
        )
    found = ", ".join(f"{value:g} {name.partition(' for ')[2]}" for name, value in quotas.items())
    return f"{settings.instance_type}: {found}; {needed} needed, beside what runs already"


def read_quotas(aws: Aws, names: list[str]) -> Mapping[str, float]:
    """The values of these quotas that are found: the account's, else AWS's own for all accounts.

    Raises as `answers`.
    """
    found: dict[str, float] = {}
    client = aws.client("service-quotas")
    for operation in ("list_service_quotas", "list_aws_default_service_quotas"):
        with answers():
            for page in client.get_paginator(operation).paginate(ServiceCode="sagemaker"):
                for quota in page["Quotas"]:
                    if quota["QuotaName"] in names:
                        found.setdefault(quota["QuotaName"], quota["Value"])
                if len(found) == len(names):
                    return found
    return found
