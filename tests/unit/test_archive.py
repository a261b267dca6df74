from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.targets.sagemaker.archive import ArchiveRefused, unpack

Entry = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"weights") -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def packed(folder: Path, *entries: Entry) -> Path:
    path = folder / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_files_and_folders_are_unpacked(tmp_path: Path) -> None:
    archive = packed(
        tmp_path,
        special("members", tarfile.DIRTYPE),
        file("./bundle.json", b"{}"),
        file("members/lstm/model.safetensors", b"\0" * 3000),
    )
    unpack(archive, tmp_path / "new" / "model")
    assert (tmp_path / "new/model/bundle.json").read_bytes() == b"{}"
    assert (tmp_path / "new/model/members/lstm/model.safetensors").read_bytes() == b"\0" * 3000
    assert os.listdir(tmp_path / "new") == ["model"]


def test_an_empty_archive_is_an_empty_folder(tmp_path: Path) -> None:
    unpack(packed(tmp_path), tmp_path / "model")
    assert everything_below(tmp_path / "model") == set()


def test_no_owner_mode_or_time_is_taken_over(tmp_path: Path) -> None:
    info, content = file("run.sh")
    info.mode, info.mtime, info.uid = 0o6777, 1, 0
    unpack(packed(tmp_path, (info, content)), tmp_path / "model")
    status = (tmp_path / "model/run.sh").stat()
    assert status.st_mode & 0o6111 == 0
    assert status.st_mtime > 1
    assert status.st_uid == os.getuid()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (file("../outside"), "'../outside' leaves the folder"),
        (file("a/../../outside"), "'a/../../outside' leaves the folder"),
        (file("a\\..\\..\\outside"), "leaves the folder"),
        (file("/etc/outside"), "'/etc/outside' is an absolute path"),
        (file("C:\\outside"), "is an absolute path"),
        (special("link", tarfile.SYMTYPE, "/etc"), "'link' is a symbolic link to '/etc'"),
        (special("link", tarfile.SYMTYPE, "a"), "'link' is a symbolic link to 'a'"),
        (special("link", tarfile.LNKTYPE, "a"), "'link' is a hard link to 'a'"),
        (special("null", tarfile.CHRTYPE), "'null' is a device or another special file"),
        (special("disk", tarfile.BLKTYPE), "'disk' is a device or another special file"),
        (special("pipe", tarfile.FIFOTYPE), "'pipe' is a device or another special file"),
        (file("a"), "'a' is in it twice"),
    ],
)
def test_what_a_model_has_no_use_for_is_refused(tmp_path: Path, entry: Entry, message: str) -> None:
    archive = packed(tmp_path, file("a"), entry)
    before = everything_below(tmp_path)
    with pytest.raises(ArchiveRefused) as raised:
        unpack(archive, tmp_path / "model")
    assert str(raised.value).startswith("model.tar.gz: ")
    assert message in str(raised.value)
    assert everything_below(tmp_path) == before
    assert not (tmp_path.parent / "outside").exists()


def test_a_link_is_refused_before_anything_goes_through_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = packed(tmp_path, special("link", tarfile.SYMTYPE, str(outside)), file("link/planted"))
    with pytest.raises(ArchiveRefused):
        unpack(archive, tmp_path / "model")
    assert everything_below(outside) == set()


def test_too_many_members(tmp_path: Path) -> None:
    archive = packed(tmp_path, *(file(str(number)) for number in range(4)))
    with pytest.raises(ArchiveRefused, match=r"model\.tar\.gz: more than 3 members"):
        unpack(archive, tmp_path / "model", max_members=3)
    assert not (tmp_path / "model").exists()
    unpack(archive, tmp_path / "model", max_members=4)


def test_too_many_bytes_are_refused_before_they_are_written(tmp_path: Path) -> None:
    archive = packed(tmp_path, file("a", b"12"), file("bomb", b"\0" * 50_000_000))
    with pytest.raises(ArchiveRefused, match="'bomb' brings it over 1,000 bytes unpacked"):
        unpack(archive, tmp_path / "model", max_bytes=1000)
    assert everything_below(tmp_path) == {"model.tar.gz"}


def truncated(content: bytes) -> bytes:
    return content[:-20]


def without_checksum(content: bytes) -> bytes:
    return content[:-8]


def other_checksum(content: bytes) -> bytes:
    return content[:-8] + b"\0\0\0\0" + content[-4:]


def not_gzip(content: bytes) -> bytes:
    return gzip.decompress(content)


def cut_before_compression(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:700])


def an_html_page(content: bytes) -> bytes:
    return b"<Error><Code>AccessDenied</Code></Error>"


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        without_checksum,
        other_checksum,
        not_gzip,
        cut_before_compression,
        an_html_page,
        empty,
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = packed(tmp_path, file("a", os.urandom(3000)), file("b", os.urandom(3000)))
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ArchiveRefused, match=r"model\.tar\.gz: "):
        unpack(archive, tmp_path / "model")
    assert everything_below(tmp_path) == {"model.tar.gz"}


@given(position=st.integers(min_value=0), flip=st.integers(1, 255))
def test_a_flipped_byte_never_gives_other_files(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    archive = packed(folder, file("a", b"weights" * 100), file("d/b", b"more"))
    content = bytearray(archive.read_bytes())
    content[position % len(content)] ^= flip
    archive.write_bytes(content)
    try:
        unpack(archive, folder / "model")
    except ArchiveRefused:
        assert everything_below(folder) == {"model.tar.gz"}
    else:  # a byte of gzip's header, such as its time
        assert (folder / "model/a").read_bytes() == b"weights" * 100
        assert everything_below(folder / "model") == {"a", "d", "d/b"}


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match=r"unpack model\.tar\.gz into a new folder"):
        unpack(packed(tmp_path, file("a")), tmp_path / "model")
    assert everything_below(tmp_path / "model") == set()
