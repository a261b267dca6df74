"""The archive that SageMaker unpacks into an endpoint's container: model.tar.gz."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import tempfile
from pathlib import Path

from ray_jobs.targets.sagemaker.aws import Aws, answers, is_missing

_SHA256 = "sha256"  # of the archive, in the object's metadata


def write_archive(bundle: Path, path: Path) -> None:
    """Pack a bundle. The same files give the same bytes: no times, owners or modes of this
    machine's."""
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for source in sorted(bundle.rglob("*")):
            if source.is_dir():
                continue
            assert not source.is_symlink(), source  # a Release's bundle has been checked
            member = tarfile.TarInfo(source.relative_to(bundle).as_posix())
            member.size, member.mode = source.stat().st_size, 0o644
            with source.open("rb") as content:
                archive.addfile(member, content)


def archive_uri(root: str, digest: str) -> str:
    """Where the archive of the bundle with this digest lies, below the storage's root."""
    return f"{root}/models/{digest}/model.tar.gz"


def upload_archive(aws: Aws, bundle: Path, uri: str, kms_key: str | None) -> bool:
    """Have a bundle's archive at `uri`. Whether it had to be sent: one that is there already is
    not sent again, unless it is another.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory(prefix="emberline-model-") as scratch:
        path = Path(scratch) / "model.tar.gz"
        write_archive(bundle, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        s3 = aws.client("s3")
        with answers():
            try:
                there = s3.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if not is_missing(error):
                    raise
            else:
                if there.get("Metadata", {}).get(_SHA256) == digest:
                    return False
            extra: dict[str, object] = {"Metadata": {_SHA256: digest}}
            if kms_key is not None:
                extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key}
            with path.open("rb") as file:
                s3.upload_fileobj(file, bucket, key, ExtraArgs=extra)
    return True
