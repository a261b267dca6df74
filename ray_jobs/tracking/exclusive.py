"""Files that are created once: of several writers, one."""

from __future__ import annotations

import os
import uuid
from typing import Any

from ray_jobs.storage import Storage, StorageRefused, StorageUnavailable

_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")  # S3 User Guide, conditional writes


def create(storage: Storage, path: str, content: bytes) -> bool:
    """Write a whole file unless there is one; whether it was written.

    Locally a hard link decides, on S3 a conditional put.

    Raises:
        StorageUnavailable: the storage does not answer, or not now.
        StorageRefused: it refuses.
    """
    if not storage.is_local:
        return _put(storage, path, content)
    target = storage.local(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, target)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _put(storage: Storage, path: str, content: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = storage.full(path).partition("/")
    try:
        _client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _TAKEN:
            return False
        kind = StorageUnavailable if _may_pass(error) else StorageRefused
        raise kind(f"storage {storage.uri!r} did not take {path} ({code})") from None
    except BotoCoreError as error:
        raise StorageUnavailable(
            f"storage {storage.uri!r} does not answer ({error}). Look at the network and "
            "AWS_ENDPOINT_URL; then give the same command again"
        ) from None
    return True


def _may_pass(error: Any) -> bool:
    """Whether S3 itself is at fault, or asks for patience."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500


def _client() -> Any:
    import boto3

    return boto3.client("s3")
