"""Storage: one root URI (`./runs`, `s3://bucket/prefix`) behind which all runs, datasets and models
live.

Paths given to a Storage are relative to its root, with `/`. Files are written whole and atomically:
a reader sees the old content or the new one, never a part.

A remote storage that does not answer is asked again, six times in all (AWS_MAX_ATTEMPTS sets
another number), with pauses of up to 1, 2, 4, 8 and 16 s, half of that on average; then it is taken
for unavailable. A local one raises the OSErrors of its system, such as that of a full disk.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ray_jobs.errors import PreflightError, RetryableError

if TYPE_CHECKING:
    from pyarrow import Buffer, NativeFile
    from pyarrow.fs import FileSystem

_MAX_ATTEMPTS = 6
_COPY_BYTES = 1 << 20
_AWS_ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status \d+\))?")
# Of a request to delete many, which itself succeeds: the first object's failure, in S3's words.
_NOT_DELETED = re.compile(
    r"errors when deleting objects in S3 bucket '[^']*':\n- key '.*': (.+?)\.?$", re.M
)
# What waiting does not mend. AWS General Reference, "Common Errors"; S3 API Reference, "Error
# responses"; spelled as Arrow does (aws/core/client/CoreErrors.h).
_REFUSALS = frozenset(
    {
        "ACCESS_DENIED",
        "INCOMPLETE_SIGNATURE",
        "INVALID_ACCESS_KEY_ID",
        "INVALID_CLIENT_TOKEN_ID",
        "INVALID_SIGNATURE",
        "MISSING_AUTHENTICATION_TOKEN",
        "NO_SUCH_BUCKET",
        "OPT_IN_REQUIRED",
        "REQUEST_EXPIRED",
        "SIGNATURE_DOES_NOT_MATCH",
        "UNRECOGNIZED_CLIENT",
    }
)


class StorageUnavailable(RetryableError, OSError):
    """A remote storage does not answer, or not now. What it holds, it keeps."""


class StorageRefused(PreflightError, OSError):
    """A remote storage refuses these credentials, or has no such bucket."""


def outage(uri: str, error: OSError) -> StorageUnavailable | StorageRefused | None:
    """A failure of S3's, which names itself, as an error that a user can read. None of any other,
    such as a missing file or a full disk.

    Args:
        uri: what to name.
    """
    if isinstance(error, StorageUnavailable | StorageRefused):
        return None
    found = _AWS_ERROR.search(str(error)) or _NOT_DELETED.search(str(error))
    if found is None:
        return None
    told = found[0] if found.re is _AWS_ERROR else f"not deleted: {found[1]}"
    if found[1].upper().replace(" ", "_") in _REFUSALS:
        return StorageRefused(
            f"storage {uri!r} refuses access ({told}). Check the bucket, your AWS credentials "
            "and AWS_ENDPOINT_URL; then give the same command again"
        )
    advice = " Look at the network and AWS_ENDPOINT_URL." * (found[1] == "NETWORK_CONNECTION")
    return StorageUnavailable(
        f"storage {uri!r} does not answer ({told}).{advice} What it holds is kept: once it "
        "answers, the same command with the same --run-id goes on from there"
    )


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raises `outage` of what goes wrong within, where it is one."""
    try:
        yield
    except OSError as error:
        told = outage(uri, error)
        if told is None:
            raise
        raise told from None


def resolve_filesystem(uri: str | os.PathLike[str]) -> tuple[FileSystem, str]:
    """A pyarrow filesystem and the path within it, for a local path or a URI.

    S3 endpoints and credentials come from the standard AWS variables (`AWS_ENDPOINT_URL`,
    `AWS_PROFILE`, ...).

    Raises:
        PreflightError: the URI's scheme is unknown, or its bucket cannot be reached.
    """
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, LocalFileSystem

    text = os.fspath(uri)
    if "://" not in text:
        return LocalFileSystem(), str(Path(text).expanduser().absolute())
    try:
        if text.startswith("s3://"):
            return _s3(text)
        return FileSystem.from_uri(text)
    except (ArrowInvalid, OSError) as error:
        raise PreflightError(f"{text}: cannot be opened: {brief_cause(error)}") from None


def _s3(uri: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    # from_uri() would look the bucket's region up on amazonaws.com even for a private endpoint.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    filesystem = S3FileSystem(
        endpoint_override=endpoint,
        region=region or ("us-east-1" if endpoint else None),
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=max_attempts()),
    )
    return filesystem, uri.removeprefix("s3://").rstrip("/")


def max_attempts() -> int:
    """Of one request, with the first: AWS SDKs and Tools Reference Guide, "Retry behavior"."""
    given = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return int(given) if given.isdecimal() and int(given) else _MAX_ATTEMPTS


def brief_cause(error: BaseException) -> str:
    """What a message of Arrow comes down to: its S3 errors run to a paragraph around one code."""
    text = str(error).strip()
    code = _AWS_ERROR.search(text)
    if code:
        return code[1]
    return text.partition("\n")[0][:200] or type(error).__name__


class Storage:
    """Files under one root URI.

    Every method that reads or writes raises, where the storage is remote:
        StorageUnavailable: it does not answer, or not now.
        StorageRefused: it never will.
    """

    def __init__(self, uri: str | os.PathLike[str]):
        self.filesystem, self._root = resolve_filesystem(uri)
        self.is_local = self.filesystem.type_name == "local"
        # A local root is made absolute: other processes may have another working directory.
        self.uri = self._root if self.is_local else os.fspath(uri).rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def full(self, path: str) -> str:
        """The path within `filesystem` of a path relative to the root.

        Raises:
            ValueError: the path would leave the root.
        """
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a path below {self._root!r}")
        return str(PurePosixPath(self._root, path)) if path else self._root

    def local(self, path: str = "") -> Path:
        """The path as a local one. Only for a local storage."""
        assert self.is_local, f"{self.uri} is not local"
        return Path(self.full(path))

    def display(self, path: str) -> str:
        """What to print to a user for a path: a local path or a full URI."""
        return self.full(path) if self.is_local else f"{self.uri}/{path}"

    def check_writable(self) -> None:
        """Write and delete a small file.

        Raises:
            PreflightError: the root cannot be written.
            StorageUnavailable: it does not answer now.
        """
        probe = f".write-check-{uuid.uuid4().hex}"
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except StorageUnavailable:
            raise
        except OSError as error:
            raise PreflightError(
                f"storage {self.uri!r} cannot be written ({brief_cause(error)}). "
                "Set `storage` (or --storage) to a folder or s3:// URI that you may write to; for "
                "S3, check the bucket, your AWS credentials and AWS_ENDPOINT_URL"
            ) from None

    def exists(self, path: str) -> bool:
        from pyarrow.fs import FileType

        with self._answering():
            return self.filesystem.get_file_info(self.full(path)).type != FileType.NotFound

    def read_bytes(self, path: str) -> bytes:
        with self.open_input(path) as file:
            return file.read()

    def read_buffer(self, path: str) -> Buffer:
        """A whole file in Arrow's own memory, for what Arrow parses.

        Of a Python object that Arrow reads, one of its threads may let go last: while the process
        ends, that aborts it (github.com/apache/arrow/issues/34314).
        """
        with self.open_input(path) as file:
            return file.read_buffer()

    def read_text(self, path: str) -> str:
        return self.read_bytes(path).decode("utf-8")

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a whole file, atomically."""
        with self.open_output(path) as stream:
            stream.write(content)

    def write_text(self, path: str, content: str) -> None:
        self.write_bytes(path, content.encode("utf-8"))

    @contextmanager
    def open_input(self, path: str) -> Iterator[NativeFile]:
        """A binary file to be read in parts, as a Parquet file is."""
        with self._answering(), self.filesystem.open_input_file(self.full(path)) as file:
            yield file

    @contextmanager
    def open_output(self, path: str) -> Iterator[IO[bytes]]:
        """A binary stream that becomes the file when it closes without an error."""
        target = self.full(path)
        if not self.is_local:
            # Arrow completes an upload whatever ends it: so it begins when the content is whole.
            with tempfile.TemporaryFile(prefix="emberline-") as file:
                yield file
                file.seek(0)
                with (
                    self._answering(),
                    self.filesystem.open_output_stream(target, compression=None) as stream,
                ):
                    shutil.copyfileobj(file, stream, _COPY_BYTES)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def append_line(self, path: str, line: str) -> None:
        """Append one line in a single write, so that several processes may share the file. Only
        for a local storage."""
        target = self.local(path)
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8") + b"\n")
        finally:
            os.close(descriptor)

    def list(self, path: str = "", *, recursive: bool = False) -> list[str]:
        """Paths under a folder, sorted, relative to the root. A folder that does not exist has
        none."""
        return sorted(self._below(path, recursive=recursive))

    def _below(self, path: str, *, recursive: bool) -> dict[str, bool]:
        """What is under a folder: whether it is one itself."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.full(path), recursive=recursive, allow_not_found=True)
        prefix = self._root.rstrip("/") + "/"
        with self._answering():
            try:
                infos = self.filesystem.get_file_info(selector)
            except FileNotFoundError:  # made while Arrow looked whether it is there
                infos = self.filesystem.get_file_info(selector)
        return {info.path.removeprefix(prefix): info.type == FileType.Directory for info in infos}

    def delete(self, path: str) -> None:
        with self._answering():
            self.filesystem.delete_file(self.full(path))

    def delete_folder(self, path: str) -> None:
        if self.exists(path):
            with self._answering():
                self.filesystem.delete_dir(self.full(path))

    def make_folder(self, path: str) -> None:
        with self._answering():
            self.filesystem.create_dir(self.full(path), recursive=True)

    def publish_folder(self, source: Path, path: str) -> None:
        """Copy a local folder to `path`, replacing what stands there. Locally the swap is a
        rename. Elsewhere what is no longer in it goes last: should the copy break off, it is still
        there."""
        if self.is_local:
            target = self.local(path)
            staging = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
            shutil.copytree(source, staging)
            if target.exists():
                shutil.rmtree(target)
            os.replace(staging, target)
            return
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._answering():
            copy_files(
                str(source),
                self.full(path),
                source_filesystem=LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )
        new = {file.relative_to(source).as_posix() for file in source.rglob("*")}
        self._delete_others(path, {f"{path}/{name}" for name in new})

    def _delete_others(self, path: str, kept: set[str]) -> None:
        """Delete what is below a folder, but for these paths."""
        deleted: tuple[str, ...] = ()
        for other, is_folder in sorted(self._below(path, recursive=True).items()):
            if other in kept or other.startswith(deleted):
                continue
            if is_folder:
                self.delete_folder(other)
                deleted += (f"{other}/",)
            else:
                self.delete(other)

    @contextmanager
    def local_folder(self, path: str) -> Iterator[Path]:
        """A local folder that holds what `path` holds: itself if local, else a copy that is
        deleted afterwards."""
        if self.is_local:
            yield self.local(path)
            return
        from pyarrow.fs import LocalFileSystem, copy_files

        with tempfile.TemporaryDirectory(prefix="emberline-") as folder:
            with self._answering():
                copy_files(
                    self.full(path),
                    folder,
                    source_filesystem=self.filesystem,
                    destination_filesystem=LocalFileSystem(),
                )
            yield Path(folder)

    def _answering(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_local else answering(self.uri)


def writable(uri: str | os.PathLike[str]) -> Storage:
    """The storage, once a file has been written there and deleted.

    Raises:
        PreflightError: it cannot be written.
        StorageUnavailable: it does not answer.
    """
    storage = Storage(uri)
    storage.check_writable()
    return storage
