"""Files that are created once: of several writers, one."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray_jobs.storage import Storage, StorageRefused, StorageUnavailable, max_attempts

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_TAKEN, _CONFLICT = "PreconditionFailed", "ConditionalRequestConflict"
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  # between tries that conflict with another's
_CREATION = threading.Lock()  # boto3 guide, "Sessions": these are not for several threads at once
_WRITER = "writer"  # metadata of an object: who created it


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
    """A put whose answer is lost is sent again, and then meets what it wrote itself: so each says
    who wrote. S3 User Guide, "How to prevent object overwrites with conditional writes"."""
    from botocore.exceptions import ClientError

    bucket, _, key = storage.full(path).partition("/")
    where, writer, pauses = {"Bucket": bucket, "Key": key}, uuid.uuid4().hex, iter(_PAUSES_S)
    with _answering(storage, path):
        client = _client()
        while True:
            try:
                client.put_object(
                    **where, Body=content, IfNoneMatch="*", Metadata={_WRITER: writer}
                )
            except ClientError as error:
                if _code(error) == _TAKEN:
                    return _writer(client, where) == writer
                # Another's write or deletion is under way, and may yet come to nothing.
                pause_s = next(pauses, None) if _code(error) == _CONFLICT else None
                if pause_s is None:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1))
            else:
                return True


def _writer(client: Any, where: dict[str, str]) -> str | None:
    """Who created an object; None if it does not say, or has been deleted since."""
    from botocore.exceptions import ClientError

    try:
        return client.head_object(**where)["Metadata"].get(_WRITER)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise


@contextmanager
def _answering(storage: Storage, path: str) -> Iterator[None]:
    """S3's failures within, as those of a storage."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        told = f"storage {storage.uri!r} did not take {path} ({_code(error)})"
        if _may_pass(error):
            raise StorageUnavailable(f"{told}; give the same command again") from None
        raise StorageRefused(
            f"{told}. Check the bucket, your AWS credentials and AWS_ENDPOINT_URL; then give the "
            "same command again"
        ) from None
    except BotoCoreError as error:
        raise StorageUnavailable(
            f"storage {storage.uri!r} does not answer ({error}). Look at the network and "
            "AWS_ENDPOINT_URL; then give the same command again"
        ) from None


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]


def _may_pass(error: ClientError) -> bool:
    """Whether S3 itself is at fault, or asks for patience."""
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status >= 500 or _code(error) == _CONFLICT


def _client() -> Any:
    """As patient as Arrow's is: left to itself, botocore gives up within a quarter of a second."""
    import boto3
    from botocore.config import Config

    retries = {"mode": "legacy", "total_max_attempts": max_attempts()}
    with _CREATION:
        return boto3.client("s3", config=Config(retries=retries))
