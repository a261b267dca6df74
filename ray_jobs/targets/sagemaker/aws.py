"""The services of AWS that the SageMaker target calls, and their errors as this project's.

boto3 makes every call: the vendor's SDK (ModelTrainer) starts a script of its own in place of the
image's `train`, and takes 209 MB and 2.8 s to import, for requests that are one call each.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import EmberlineError, PreflightError, RetryableError, SpecError
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.exceptions import ClientError

_CONNECT_S, _READ_S = 10, 60
_MAX_MESSAGE = 300  # characters of a service's own words
# AWS General Reference, "Common Errors", and those of S3, STS and SageMaker.
_REFUSED = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"})
_PASSING = re.compile(
    r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|BandwidthLimitExceeded|InternalError|"
    r"InternalFailure|InternalServer|ServiceUnavailable|RequestTimeout|PriorRequestNotComplete"
)
_ACTION = re.compile(r"to perform:? ([\w-]+:\w+)")
_LOGIN = (
    "sign in again (aws sso login, or aws configure), or set AWS_PROFILE, and look with aws sts "
    "get-caller-identity"
)


class Aws:
    """Clients of one region, each made when it is first needed. Threads may share it.

    botocore retries what may pass (throttling, 5xx, a lost connection) with backoff and jitter, in
    its `standard` mode, and nothing else: Boto3 Guide, "Retries".
    """

    def __init__(self, settings: SageMakerSpec):
        self._settings = settings
        self._clients: dict[str, Any] = {}
        self._lock = threading.RLock()  # a session makes one client at a time

    @cached_property
    def region(self) -> str:
        """Raises SpecError: neither the description, the environment nor the profile names it."""
        region = (
            self._settings.region or os.environ.get("AWS_REGION") or self._session(None).region_name
        )
        if not region:
            raise SpecError(
                "target sagemaker needs a region: set sagemaker.region, such as --set "
                "sagemaker.region=eu-west-1, or AWS_REGION, or the profile's (aws configure)"
            )
        return region

    @property
    def console(self) -> str:
        """Where a person looks at the training jobs."""
        return f"https://{self.region}.console.aws.amazon.com/sagemaker/home?region={self.region}"

    def client(self, service: str) -> Any:
        """A client of boto3, such as `sagemaker`, `s3`, `logs`, `sts`, `iam`, `service-quotas`,
        `ecr` or `ec2`.

        Raises:
            SpecError: no region. PreflightError: AWS_PROFILE names no profile.
        """
        from botocore.config import Config

        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._session(self.region).client(
                    service,
                    config=Config(
                        connect_timeout=_CONNECT_S,
                        read_timeout=_READ_S,
                        retries={"mode": "standard", "total_max_attempts": 6},
                        user_agent_extra="emberline",
                    ),
                )
            return self._clients[service]

    def _session(self, region: str | None) -> Session:
        import boto3
        from botocore.exceptions import ProfileNotFound

        try:
            return boto3.Session(region_name=region)
        except ProfileNotFound as error:
            raise PreflightError(f"{error}; set AWS_PROFILE to one of ~/.aws/config") from None


@contextmanager
def answers() -> Iterator[None]:
    """What AWS raises within, as errors of this project.

    Raises:
        PreflightError: it refuses these credentials, this user or this request.
        RetryableError: it does not answer, or not now.
        SpecError: the request cannot be meant.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _of_service(error) from None
    except (BotoCoreError, ResponseParserError) as error:
        raise _of_client(error) from None


def code_of(error: ClientError) -> str:
    """The error's code, such as `AccessDeniedException`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def message_of(error: ClientError) -> str:
    """The service's own words, on one line."""
    return " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:_MAX_MESSAGE]


def permission_of(error: ClientError) -> str | None:
    """The permission that was denied, such as `sagemaker:CreateTrainingJob`, where AWS names it."""
    found = _ACTION.search(message_of(error))
    return found[1] if found else None


def is_missing(error: ClientError) -> bool:
    """Whether what was asked for does not exist. SageMaker says so by a ValidationException whose
    words are "Requested resource not found."."""
    code = code_of(error)
    return code in ("404", "NoSuchKey", "NoSuchBucket", "ResourceNotFoundException") or (
        code in ("ValidationException", "ResourceNotFound")
        and "not found" in message_of(error).lower()
    )


def is_denied(error: ClientError) -> bool:
    """Whether the credentials are good, but lack a permission."""
    return code_of(error) in _DENIED


def _of_service(error: ClientError) -> EmberlineError:
    code, operation = code_of(error), error.operation_name
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in _REFUSED:  # their words can hold the request's headers, the token among them
        return PreflightError(f"AWS refuses these credentials ({operation}: {code}); {_LOGIN}")
    if code in _DENIED:
        needed = permission_of(error)
        what = f"the permission {needed}" if needed else f"what {operation} needs"
        return PreflightError(
            f"AWS denies {operation}: this user or role lacks {what}; have it allowed in IAM, and "
            "look with emberline doctor --target sagemaker"
        )
    if _PASSING.search(code) or status >= 500 or status == 429:
        return RetryableError(
            f"AWS does not carry out {operation} now ({code}), after several tries; try again later"
        )
    if code == "ResourceLimitExceeded":
        return PreflightError(
            f"{operation}: {message_of(error)} Ask for more in Service Quotas, take another "
            "sagemaker.instance_type, or wait for other jobs to end"
        )
    return PreflightError(f"AWS refuses {operation} ({code}): {message_of(error)}")


def _of_client(error: Exception) -> EmberlineError:
    from botocore import exceptions as of
    from botocore.parsers import ResponseParserError

    kind = type(error).__name__
    if isinstance(
        error,
        of.NoCredentialsError
        | of.PartialCredentialsError
        | of.CredentialRetrievalError
        | of.SSOError
        | of.TokenRetrievalError
        | of.NoAuthTokenError,
    ):
        return PreflightError(f"there are no usable AWS credentials ({kind}); {_LOGIN}")
    if isinstance(error, of.ParamValidationError | of.UnknownRegionError | of.InvalidRegionError):
        return SpecError(f"AWS takes no such request: {' '.join(str(error).split())}")
    if isinstance(
        error,
        of.HTTPClientError | of.ConnectionError | of.IncompleteReadError | ResponseParserError,
    ):
        return RetryableError(
            f"AWS does not answer ({kind}); look at the network, the region and AWS_ENDPOINT_URL"
        )
    return PreflightError(f"AWS cannot be asked ({kind}): {' '.join(str(error).split())}")
