"""The archive of a model that a training service hands back: unpacked whole, below one folder, or
refused."""

from __future__ import annotations

import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from ray_jobs.errors import JobFailed

MAX_MEMBERS = 10_000
MAX_BYTES = 20 * 2**30
_CHUNK_BYTES = 2**20


class ArchiveRefused(JobFailed):
    """An archive that is damaged, or that holds what a model's archive has no use for."""


def unpack(
    archive: Path, folder: Path, *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
) -> None:
    """Unpack a `.tar.gz` into `folder`, which must not exist yet.

    Files and folders only, each below `folder`; the archive's owners, modes and times are not
    taken over. It is unpacked beside the folder and renamed: either all of it is there, or
    nothing.

    Args:
        archive: a tar file compressed by gzip.
        folder: made here; its parent is made if need be.
        max_members: files and folders in the archive.
        max_bytes: of all files, unpacked.

    Raises:
        ArchiveRefused: names the member, or what is wrong with the file.
        FileExistsError: `folder` exists.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists; unpack {archive.name} into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    staging.mkdir()
    try:
        try:
            _unpack(archive, staging, max_members, max_bytes)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise _unreadable(archive, error) from None
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after the rename there is none


def _unreadable(archive: Path, error: BaseException) -> ArchiveRefused:
    if isinstance(error, tarfile.FilterError):  # our own refusals come first; this is the backstop
        return ArchiveRefused(f"{archive.name}: {error}")
    cause = str(error) or type(error).__name__
    return ArchiveRefused(
        f"{archive.name}: not a whole .tar.gz ({cause}); fetch it again, or look at the job's logs"
    )


def _unpack(archive: Path, root: Path, max_members: int, max_bytes: int) -> None:
    num_bytes = 0
    taken: set[Path] = set()
    with tarfile.open(archive, "r:gz", errorlevel=2) as tar:
        for number, member in enumerate(_members(tar), 1):
            if number > max_members:
                raise ArchiveRefused(f"{archive.name}: more than {max_members:,} members")
            target = _target(archive, root, member)
            # Counted before a byte is written: a small archive can claim any size.
            num_bytes += member.size
            if num_bytes > max_bytes:
                raise ArchiveRefused(
                    f"{archive.name}: {member.name!r} brings it over {max_bytes:,} bytes unpacked"
                )
            if target in taken and not member.isdir():
                raise ArchiveRefused(f"{archive.name}: {member.name!r} is in it twice")
            taken.add(target)
            _write(archive, tar, member, target)
        # tarfile takes a file that is cut off between two members for whole; gzip does not.
        _read_to_end(tar, max_bytes)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member


def _target(archive: Path, root: Path, member: tarfile.TarInfo) -> Path:
    """Where a member goes, or a refusal."""
    what = _fault(member)
    if what is None:
        # What the standard library refuses besides, on this platform.
        tarfile.data_filter(member, str(root))
        return root.joinpath(*member.name.split("/"))
    raise ArchiveRefused(
        f"{archive.name}: {member.name!r} {what}; a model's archive holds plain files and folders"
    )


def _fault(member: tarfile.TarInfo) -> str | None:
    faults = {
        "is an absolute path": member.name.startswith(("/", "\\")) or member.name[1:2] == ":",
        "leaves the folder": ".." in member.name.replace("\\", "/").split("/"),
        f"is a symbolic link to {member.linkname!r}": member.issym(),
        f"is a hard link to {member.linkname!r}": member.islnk(),
        # The size of a sparse file on disk is not what its header says.
        "is a sparse file": member.issparse(),
        "is a device or another special file": not (member.isreg() or member.isdir()),
    }
    return next((what for what, is_so in faults.items() if is_so), None)


def _write(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, member.name
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise ArchiveRefused(f"{archive.name}: {member.name!r} is cut off")


def _read_to_end(tar: tarfile.TarFile, max_bytes: int) -> None:
    """Read what follows the last member, so that gzip compares its checksum."""
    stream = tar.fileobj
    assert stream is not None
    num_bytes = 0
    while chunk := stream.read(_CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise tarfile.ReadError("it goes on after its last member")
