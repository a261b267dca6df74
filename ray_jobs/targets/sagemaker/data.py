"""Local data of a job on S3, where a training job finds them: uploaded once, by digest.

<root>/data/<digest>/<name>     the files, as they are called below data.path
<root>/data/<digest>.json       written last: all of them are there
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_jobs.data.added import naming_added
from ray_jobs.data.table import DataFile, content_digest, find_files
from ray_jobs.errors import DataError
from ray_jobs.sections import JobSpec
from ray_jobs.storage import brief_cause, resolve_filesystem
from ray_jobs.targets.base import OnUpload
from ray_jobs.targets.sagemaker.aws import Aws, answers, is_missing

_DIGEST_LENGTH = 32
_NUM_THREADS = 8


def upload_channels(
    spec: JobSpec,
    root: str,
    aws: Aws,
    *,
    kms_key: str | None = None,
    on_upload: OnUpload = lambda done, total: None,
) -> dict[str, str]:
    """The channels of a job's local data, name -> S3 prefix: `data` for `data.path`, `data_0`,
    `data_1`, ... for `data.sources`, `added_0`, `added_1`, ... for `data.added`. Data at a URI are
    none: the job reads them itself.

    Args:
        root: URI of the runs, on S3.
        kms_key: that the objects are encrypted with.
        on_upload: told of every file.

    Raises:
        DataError: there are no data at a path, or they cannot be read.
        PreflightError, RetryableError: as `answers` says.
    """
    return {name: _upload(files, root, aws, kms_key, on_upload) for name, files in _local(spec)}


def _local(spec: JobSpec) -> Iterator[tuple[str, list[DataFile]]]:
    """Each channel, and its files."""
    data = spec.model_dump(mode="json").get("data") or {}
    path = data.get("path")
    if path and "://" not in path:
        yield "data", find_files(path)
    for number, source in enumerate(data.get("sources") or []):
        if "://" not in source["path"]:
            key = f"data.sources.{number}"
            yield f"data_{number}", _files_below(source["path"], key)
    for number, entry in enumerate(data.get("added") or []):
        is_folder = isinstance(entry, dict)  # of pictures; others are tables or logs
        path = entry["path"] if is_folder else entry
        if "://" in path:
            continue
        if is_folder:
            yield f"added_{number}", _files_below(path, f"data.added.{number}")
        else:
            with naming_added():
                yield f"added_{number}", find_files(path)


def _files_below(folder: str, key: str) -> list[DataFile]:
    from pyarrow.fs import FileSelector

    filesystem, root = resolve_filesystem(folder)
    try:
        below = filesystem.get_file_info(FileSelector(root, recursive=True))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({brief_cause(error)}). Set {key}.path to the folder "
            "whose subfolders are the classes"
        ) from None
    names = {info.path[len(root) :].lstrip("/"): info.path for info in below if info.is_file}
    seen = sorted(name for name in names if not _is_hidden(name))
    if not seen:
        raise DataError(f"{folder}: the folder is empty. Set {key}.path to one with class folders")
    return [DataFile(name, names[name], filesystem) for name in seen]


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _upload(
    files: Sequence[DataFile], root: str, aws: Aws, kms_key: str | None, on_upload: OnUpload
) -> str:
    """Have the files on S3. Returns their prefix."""
    digest = content_digest(files)[:_DIGEST_LENGTH]
    bucket, _, folder = root.removeprefix("s3://").partition("/")
    prefix = f"{folder}/data/{digest}".lstrip("/")
    marker = f"{prefix}.json"
    uri = f"s3://{bucket}/{prefix}/"
    s3 = aws.client("s3")
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    with answers():
        if _exists(s3, bucket, marker):
            return uri
        sizes = {file.name: _size(file) for file in files}
        there = _sizes_below(s3, bucket, f"{prefix}/")
        # An object appears whole or not at all: one of the same size is of an upload cut off.
        missing = [file for file in files if there.get(file.name) != sizes[file.name]]
        total = sum(sizes.values())
        done = total - sum(sizes[file.name] for file in missing)
        on_upload(done, total)

        def put(file: DataFile) -> int:
            with open(file.path, "rb") as stream:
                s3.upload_fileobj(stream, bucket, f"{prefix}/{file.name}", ExtraArgs=extra)
            return sizes[file.name]

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for size in pool.map(put, missing):
                done += size
                on_upload(done, total)
        content = json.dumps({"num_files": len(files), "num_bytes": total})
        s3.put_object(Bucket=bucket, Key=marker, Body=content.encode(), **extra)
    return uri


def _size(file: DataFile) -> int:
    return file.filesystem.get_file_info(file.path).size


def _exists(s3: Any, bucket: str, key: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_missing(error):
            return False
        raise
    return True


def _sizes_below(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {
        item["Key"].removeprefix(prefix): item["Size"]
        for page in pages
        for item in page.get("Contents", [])
    }
