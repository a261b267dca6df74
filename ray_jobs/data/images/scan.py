"""Read and decode every picture once, and remember what was found.

What is known of a file is kept on the storage, one Parquet file a source, under the file's path,
size and time of change: only new and changed files are decoded again.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.data.images.decode import BadPicture, decode
from ray_jobs.data.images.manifest import OK, read_bytes
from ray_jobs.data.images.near_duplicates import perceptual_hash
from ray_jobs.data.images.sources import PictureFile
from ray_jobs.data.pool import map_unordered
from ray_jobs.errors import DataError, RetryableError
from ray_jobs.storage import Storage, brief_cause

_DECIDES = ("decode", "near_duplicates", "scan")  # modules that decide what is found in a file
_MIN_FOR_POOL = 64  # fewer are read before a process has started
_COARSE_TIME_NS = 2_000_000_000  # S3 tells times in seconds: within two, a change may not show


@dataclass(frozen=True)
class Finding:
    """What one file holds. `status` is "ok" or why it cannot be used."""

    status: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    phash: int = 0
    converted: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Known:
    """A finding, and the state of the file that it was made in."""

    path: str
    size: int
    mtime_ns: int
    finding: Finding


def examine(path: str, *, max_pixels: int) -> Finding:
    """Read and decode one picture.

    Raises:
        RetryableError: the network or the store fails; it says nothing of the picture.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        cause = brief_cause(error)
        gone_or_denied = isinstance(error, FileNotFoundError) or cause == "ACCESS_DENIED"
        if "://" in path and not gone_or_denied:
            raise RetryableError(f"{path}: cannot be read ({cause}). Run again") from None
        return Finding("unreadable", detail=cause)
    found = Finding(OK, sha256=hashlib.sha256(content).hexdigest())
    try:
        picture, mended = decode(content, max_pixels=max_pixels)
    except BadPicture as bad:
        width, height = bad.size
        return replace(found, status=bad.reason, width=width, height=height, detail=bad.detail)
    return replace(
        found,
        width=picture.width,
        height=picture.height,
        phash=perceptual_hash(picture),
        converted=",".join(mended),
    )


def scan(
    files: Sequence[PictureFile],
    *,
    max_pixels: int,
    num_workers: int | None,
    progress: Callable[[int, int], None],
    cache: ScanCache | None = None,
) -> list[Finding]:
    """What each file holds, in the files' order.

    Args:
        num_workers: processes; it changes no finding.
        progress: called with the pictures done and their number, at least once.
        cache: takes what is found, also of a scan that is broken off.

    Raises:
        DataError: the cache is damaged.
        RetryableError: a worker was killed, or the network fails.
    """
    known = cache.read() if cache else {}
    findings: dict[int, Finding] = {}
    for i, file in enumerate(files):
        entry = known.get(file.path)
        if entry and (entry.size, entry.mtime_ns) == (file.size, file.mtime_ns):
            findings[i] = entry.finding
    unknown = [i for i in range(len(files)) if i not in findings]
    progress(len(findings), len(files))
    if not unknown:
        return [findings[i] for i in range(len(files))]
    started_ns = time.time_ns()
    paths = [files[i].path for i in unknown]
    examined = functools.partial(examine, max_pixels=max_pixels)
    try:
        # Closed by name: a progress that raises must stop the workers at once.
        pooled = map_unordered(
            examined,
            paths,
            num_workers,
            min_for_pool=_MIN_FOR_POOL,
            advice=" or a smaller data.max_pixels",
        )
        with closing(pooled) as done:
            for start, results in done:
                findings |= zip(unknown[start : start + len(results)], results, strict=True)
                progress(len(findings), len(files))
    finally:
        if cache:
            cache.write([(files[i], found) for i, found in findings.items()], started_ns)
    return [findings[i] for i in range(len(files))]


class ScanCache:
    """What is known of the files of some sources."""

    def __init__(self, storage: Storage, workload: str, sources: Sequence[str], max_pixels: int):
        code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _DECIDES)
        parts = (*sources, str(max_pixels), PIL.__version__, hashlib.sha256(code).hexdigest())
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        self._storage, self._path = storage, f"datasets/{workload}-scan-cache/{name}.parquet"

    def read(self) -> dict[str, Known]:
        """By path.

        Raises:
            DataError: the file is damaged.
        """
        if not self._storage.exists(self._path):
            return {}
        content = pa.BufferReader(self._storage.read_buffer(self._path))
        try:
            table = pq.read_table(content)
            return {row["path"]: _known(row) for row in table.to_pylist()}
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise DataError(
                f"{self._storage.display(self._path)}: damaged ({brief_cause(error)}). "
                "Delete the file and run again"
            ) from None

    def write(self, found: Sequence[tuple[PictureFile, Finding]], started_ns: int) -> None:
        """Replace what is known. `started_ns`: when the first of the files was read."""
        rows: list[dict[str, Any]] = [
            {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, **asdict(finding)}
            for file, finding in found
            if finding.status != "unreadable" and not _may_change_unseen(file, started_ns)
        ]
        with self._storage.open_output(self._path) as stream:
            pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), stream, compression="zstd")


def _may_change_unseen(file: PictureFile, started_ns: int) -> bool:
    is_coarse = file.mtime_ns % 1_000_000_000 == 0
    return is_coarse and file.mtime_ns > started_ns - _COARSE_TIME_NS


def _known(row: dict[str, Any]) -> Known:
    place = {name: row.pop(name) for name in ("path", "size", "mtime_ns")}
    return Known(**place, finding=Finding(**row))


_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "status": pa.string(),
        "sha256": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "phash": pa.uint64(),
        "converted": pa.string(),
        "detail": pa.string(),
    }
)
