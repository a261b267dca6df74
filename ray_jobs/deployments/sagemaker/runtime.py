"""Requests to an endpoint.

Source: Amazon SageMaker Runtime API Reference, "InvokeEndpoint".
"""

from __future__ import annotations

from ray_jobs.deployments.sagemaker.calls import is_missing
from ray_jobs.errors import JobFailed, RetryableError
from ray_jobs.targets.sagemaker.aws import Aws, answers, code_of, message_of

_BUSY = (429, 503)


def invoke(
    aws: Aws, endpoint: str, body: bytes, media_type: str, *, variant: str | None = None
) -> bytes:
    """The answer in JSON to one request.

    Args:
        variant: that is to answer; None: one of them, by their weights.

    Raises:
        JobFailed: it answers with an error, or there is no such endpoint.
        RetryableError: it has too much to do.
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    target = {} if variant is None else {"TargetVariant": variant}
    with answers():
        try:
            found = aws.client("sagemaker-runtime").invoke_endpoint(
                EndpointName=endpoint,
                Body=body,
                ContentType=media_type,
                Accept="application/json",
                **target,
            )
            return found["Body"].read()
        except ClientError as error:
            if code_of(error) == "ModelError":
                status = error.response.get("OriginalStatusCode", "with an error")
                said = error.response.get("OriginalMessage") or message_of(error)
                kind = RetryableError if status in _BUSY else JobFailed
                raise kind(f"{endpoint} answers {status}: {said[:300]}") from None
            if is_missing(error):
                raise JobFailed(f"there is no endpoint {endpoint!r}: deploy it first") from None
            raise


def url_of(aws: Aws, endpoint: str) -> str:
    """The endpoint's URL; requests go to /invocations below it, signed (Signature Version 4)."""
    host = aws.client("sagemaker-runtime").meta.endpoint_url
    return f"{host}/endpoints/{endpoint}"
