"""What a job description says about SageMaker."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from ray_jobs.section import Section

# Amazon SageMaker AI, "CreateTrainingJob": five days at most unless the account's quota says more.
DAY_S = 86_400
MAX_TAGS = 50
# Tags that the target adds: the run, the workload, and that the job is this project's.
NUM_OWN_TAGS = 11  # with those of an owner
_OWN_PREFIX = "emberline:"

_ROLE = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_IMAGE = re.compile(
    r"\d{12}\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/[a-z0-9._/-]+"
    r"([:@][A-Za-z0-9._:-]+)?"
)
_INSTANCE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9]+")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NETWORK_ID = re.compile(r"[-0-9a-zA-Z]{1,32}")
_SECRET = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|KEY|CREDENTIAL", re.IGNORECASE)
_TAG = re.compile(r"[\w .:/=+\-@]*")

NetworkId = Annotated[str, Field(max_length=32)]


class VpcSpec(Section):
    """The private network that the instances join."""

    subnets: Annotated[list[NetworkId], Field(min_length=1, max_length=16)]
    security_group_ids: Annotated[list[NetworkId], Field(min_length=1, max_length=5)]

    @field_validator("subnets")
    @classmethod
    def _subnets(cls, ids: list[str]) -> list[str]:
        return _named(ids, "subnet-", "a subnet, such as subnet-0abc")

    @field_validator("security_group_ids")
    @classmethod
    def _groups(cls, ids: list[str]) -> list[str]:
        return _named(ids, "sg-", "a security group, such as sg-0abc")


def _named(ids: list[str], prefix: str, what: str) -> list[str]:
    for text in ids:
        if not text.startswith(prefix) or not _NETWORK_ID.fullmatch(text):
            raise ValueError(f"{text!r} does not name {what}")
    return ids


class SageMakerSpec(Section):
    """The instances of a training job, what it may cost, and where its files go.

    Where `role_arn`, `image_uri` or `region` are absent, the target asks for them before it
    submits: a description that runs locally need not name them.
    """

    instance_type: str = "ml.m5.xlarge"
    instance_count: Annotated[int, Field(ge=1, le=64)] = 1
    role_arn: str | None = None  # the execution role that the job takes on
    image_uri: str | None = None  # in ECR, built from this project's Dockerfile
    region: str | None = None  # default: AWS_REGION, or the profile's
    spot: bool = False  # spare capacity, cheaper, that may be taken back
    max_run_s: Annotated[int, Field(ge=1, le=28 * DAY_S)] = DAY_S  # of training
    max_wait_s: Annotated[int, Field(ge=1)] | None = None  # spot: of waiting and training together
    max_attempts: Annotated[int, Field(ge=1, le=30)] = 3  # after an internal error of the service
    volume_gb: Annotated[int, Field(ge=1, le=16_384)] = 30  # of each instance
    vpc: VpcSpec | None = None
    kms_key: Annotated[str, Field(max_length=2048, pattern=r"^[a-zA-Z0-9:/_-]+$")] | None = None
    tags: dict[str, str] = {}
    env: list[str] = []  # variables of this environment that the job gets too; no secrets
    keep_alive_s: Annotated[int, Field(ge=0, le=21_600)] = 0  # warm pool; billed while it waits
    # Members of an ensemble in jobs of their own, so many at once; null: one job trains them all.
    max_parallel_jobs: Annotated[int, Field(ge=1)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # Of one instance on demand, where prices.csv has no price or you pay another.
    usd_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bucket: str | None = None  # default: that of `storage`
    prefix: str = "emberline"  # below `bucket`
    poll_interval_s: Annotated[float, Field(gt=0)] = 10.0  # between two looks at a job
    stop_wait_s: Annotated[int, Field(ge=1)] = 240  # for a job that was asked to stop

    @field_validator("instance_type")
    @classmethod
    def _instance(cls, text: str) -> str:
        if not _INSTANCE.fullmatch(text):
            raise ValueError(
                f"{text!r} is not an instance type of SageMaker, such as ml.m5.xlarge or "
                "ml.g5.xlarge"
            )
        return text

    @field_validator("role_arn")
    @classmethod
    def _role(cls, text: str | None) -> str | None:
        if text is not None and not _ROLE.fullmatch(text):
            raise ValueError(
                f"{text!r} is not a role; give its ARN, arn:aws:iam::<account>:role/<name>"
            )
        return text

    @field_validator("image_uri")
    @classmethod
    def _image(cls, text: str | None) -> str | None:
        if text is not None and not (_IMAGE.fullmatch(text) and len(text) <= 255):
            raise ValueError(
                f"{text!r} is not an image in ECR; give "
                "<account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>"
            )
        return text

    @field_validator("region")
    @classmethod
    def _known_region(cls, text: str | None) -> str | None:
        if text is not None and not _REGION.fullmatch(text):
            raise ValueError(f"{text!r} is not a region, such as eu-west-1")
        return text

    @field_validator("bucket")
    @classmethod
    def _bucket(cls, text: str | None) -> str | None:
        if text is not None and not _BUCKET.fullmatch(text):
            raise ValueError(f"{text!r} is not the name of a bucket; leave s3:// and folders out")
        return text

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, text: str) -> str:
        if text.startswith("/") or text.endswith("/") or "//" in text or ".." in text:
            raise ValueError(f"{text!r} is not a prefix; write it as folder/folder")
        return text

    @field_validator("tags")
    @classmethod
    def _tags(cls, tags: dict[str, str]) -> dict[str, str]:
        if len(tags) > MAX_TAGS - NUM_OWN_TAGS:
            raise ValueError(
                f"{len(tags)} tags; SageMaker takes {MAX_TAGS}, and {NUM_OWN_TAGS} are Emberline's"
            )
        for key, value in tags.items():
            if not 1 <= len(key) <= 128 or len(value) > 256:
                raise ValueError(f"tag {key!r}: a key has 1 to 128 characters, a value at most 256")
            if not _TAG.fullmatch(key) or not _TAG.fullmatch(value):
                raise ValueError(f"tag {key!r}: use letters, digits, spaces and _.:/=+-@")
            if key.lower().startswith(("aws:", _OWN_PREFIX)):
                raise ValueError(f"tag {key!r}: aws: and {_OWN_PREFIX} are not yours to set")
        return tags

    @field_validator("env")
    @classmethod
    def _env(cls, names: list[str]) -> list[str]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name!r} looks like a secret, and everyone who may describe the job would "
                    "read it; keep it in AWS Secrets Manager and let role_arn read it"
                )
        return names

    @model_validator(mode="after")
    def _agree(self) -> SageMakerSpec:
        # Amazon SageMaker AI Developer Guide, "Managed Spot Training" and "Managed Warm Pools".
        if self.max_wait_s is not None and not self.spot:
            raise ValueError("max_wait_s belongs to spot: true; leave it out")
        if self.max_wait_s is not None and self.max_wait_s < self.max_run_s:
            raise ValueError(
                f"max_wait_s ({self.max_wait_s}) counts waiting and training, so it cannot be less "
                f"than max_run_s ({self.max_run_s})"
            )
        if self.spot and self.keep_alive_s:
            raise ValueError(
                "a warm pool (keep_alive_s) keeps no spot instances; set keep_alive_s: 0 or "
                "spot: false"
            )
        if self.image_uri and self.region:
            found = _IMAGE.fullmatch(self.image_uri)
            assert found is not None
            if found["region"] != self.region:
                raise ValueError(
                    f"image_uri is in {found['region']}, but region is {self.region}; SageMaker "
                    "pulls from the region it trains in"
                )
        return self

    @property
    def wait_s(self) -> int | None:
        """`MaxWaitTimeInSeconds`: None on demand; by default as long again as the training."""
        if not self.spot:
            return None
        return self.max_wait_s or 2 * self.max_run_s
