"""From a picture spec to a prepared dataset: list or draw, scan, cluster, split, write."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.images.added import mark_added_copies, put_in_train
from ray_jobs.data.images.decode import REASONS
from ray_jobs.data.images.doubts import DRAWN, doubts, judge_share, refuse_few_classes
from ray_jobs.data.images.manifest import Manifest, load_manifest, row_id
from ray_jobs.data.images.near_duplicates import cluster
from ray_jobs.data.images.procedural import draw_set
from ray_jobs.data.images.scan import Finding, ScanCache, scan
from ray_jobs.data.images.sources import Inventory, PictureFile, find_pictures
from ray_jobs.data.images.spec import ImageDataSpec, ImageSource
from ray_jobs.data.images.splits import assign_splits
from ray_jobs.data.prepared import read_summary, write_summary
from ray_jobs.result import (
    DataSummary,
    DuplicateReport,
    LeakageReport,
    ScanSummary,
    SplitSummary,
)
from ray_jobs.storage import Storage

__all__ = ["load_manifest", "prepare_images"]

_MODULES = (
    "added", "decode", "doubts", "manifest", "near_duplicates", "prepare", "procedural", "scan",
    "sources", "splits",
)  # fmt: skip


def prepare_images(
    data: ImageDataSpec,
    *,
    workload: str,
    seed: int,
    storage: Storage,
    num_workers: int | None = None,
    emit: Callable[..., None],
) -> DataSummary:
    """Make the dataset that a spec asks for, or find it made already.

    The folder's name is a digest of all that decides its content; of the user's own pictures only
    new and changed ones are decoded to tell. An attempt that was broken off lacks the summary and
    is written over; two processes may do that at once, for they write the same.

    Args:
        data: where the pictures come from and how they are split.
        workload: begins the folder's name.
        seed: of the drawn pictures and the splits.
        storage: takes `datasets/<workload>-<key>` and `datasets/<workload>-scan-cache`.
        num_workers: processes that draw and decode; it changes no number.
        emit: the journal; receives `progress` (done, total, unit) and `warning` (message).

    Raises:
        DataError: the pictures cannot be used as the spec asks.
        RetryableError: the network fails, or a worker was killed.
    """

    def progress(done: int, total: int) -> None:
        emit("progress", done=done, total=total, unit="pictures")

    sources: Sequence[ImageSource] = data.sources
    summary = cache = None
    if is_drawn := data.source == "procedural":
        # Whatever is added, the same pictures are drawn to the same place.
        folder = _folder(workload, data.model_copy(update={"added": []}), seed, "")
        sources = [ImageSource(path=storage.display(f"{folder}/pictures"))]
        summary = None if data.added else read_summary(storage, folder)
        if summary is not None:
            num_files = summary.scan.num_files if summary.scan else 0
            emit("progress", done=num_files, total=num_files, unit="pictures", cached=True)
            return _tell(summary, emit)
        _draw(data, seed, storage, f"{folder}/pictures", num_workers, progress)
    if data.added or not is_drawn:
        paths = [source.path for source in (*sources, *data.added)]
        cache = ScanCache(storage, workload, paths, data.max_pixels)
    inventory = find_pictures(data, sources)
    findings = scan(
        inventory.files,
        max_pixels=data.max_pixels,
        num_workers=num_workers,
        progress=progress,
        cache=cache,
    )
    if data.added or not is_drawn:
        folder = _folder(workload, data, seed, _content(inventory.files, findings))
        summary = read_summary(storage, folder)
    if summary is None:
        manifest = _manifest(inventory.files, findings)
        is_added = _is_added(manifest, data)
        mark_copies(manifest, ~is_added)
        mark_added_copies(manifest, is_added)
        mark_copies(manifest, is_added)
        summary = _split_and_write(manifest, inventory, data, seed, storage, folder)
    return _tell(summary, emit)


def _tell(summary: DataSummary, emit: Callable[..., None]) -> DataSummary:
    for message in summary.warnings:
        emit("warning", message=message)
    return summary


def _folder(workload: str, data: ImageDataSpec, seed: int, content: str) -> str:
    """Named by a digest of everything that decides the pictures and their splits."""
    code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES)
    parts = {
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "content": content,
        "code": hashlib.sha256(code).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"datasets/{workload}-{key[:16]}"


def _content(files: Sequence[PictureFile], findings: Sequence[Finding]) -> str:
    """sha256 of the files' paths, their bytes and what could be read of them."""
    digest = hashlib.sha256()
    for file, found in zip(files, findings, strict=True):
        digest.update(f"{file.path}\n{found.sha256} {found.status}\n".encode())
    return digest.hexdigest()


def _draw(
    data: ImageDataSpec,
    seed: int,
    storage: Storage,
    folder: str,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    assert data.samples is not None
    assert data.picture_size is not None
    draw_set(
        storage,
        folder,
        classes=data.classes,
        num_samples=data.samples,
        size=data.picture_size,
        seed=seed,
        num_workers=num_workers,
        progress=progress,
    )


def _is_added(manifest: Manifest, data: ImageDataSpec) -> NDArray[np.bool_]:
    """Which pictures are of data.added. Shape [N]."""
    return manifest.source >= max(1, len(data.sources))  # drawn ones are one source


def _manifest(files: Sequence[PictureFile], findings: Sequence[Finding]) -> Manifest:
    """All pictures, not yet split."""
    ids = [row_id(file.source, file.name) for file in files]
    assert len(set(ids)) == len(ids), "two pictures with one id"
    return Manifest(
        path=_texts(file.path for file in files),
        source=np.array([file.source for file in files], np.int64),
        source_class=_texts(file.source_class for file in files),
        label=np.array([file.label for file in files], np.int64),
        sha256=_texts(found.sha256 for found in findings),
        width=np.array([found.width for found in findings], np.int64),
        height=np.array([found.height for found in findings], np.int64),
        phash=np.array([found.phash for found in findings], np.uint64),
        status=_texts(found.status for found in findings),
        converted=_texts(found.converted for found in findings),
        detail=_texts(found.detail for found in findings),
        split=_texts("" for _ in files),
        group=np.full(len(files), -1, np.int64),
        row_id=np.array(ids, np.int64),
    )


def _texts(values: Iterator[str]) -> NDArray[np.object_]:
    return np.array(list(values), dtype=object)


def mark_copies(manifest: Manifest, chosen: NDArray[np.bool_]) -> None:
    """Leave out all but the first of equal files, and all if their classes differ; in place."""
    copies: dict[str, list[int]] = {}
    for i in np.flatnonzero(manifest.is_usable & chosen).tolist():
        copies.setdefault(manifest.sha256[i], []).append(i)
    for first, *others in copies.values():
        if len({int(manifest.label[i]) for i in (first, *others)}) > 1:
            for i in (first, *others):
                other = next(j for j in (first, *others) if manifest.label[j] != manifest.label[i])
                manifest.status[i] = "conflicting-label"
                manifest.detail[i] = f"the same bytes as {manifest.path[other]}"
        else:
            manifest.status[others] = "duplicate"
            manifest.detail[others] = f"the same bytes as {manifest.path[first]}"


def _split_and_write(
    manifest: Manifest,
    inventory: Inventory,
    data: ImageDataSpec,
    seed: int,
    storage: Storage,
    folder: str,
) -> DataSummary:
    """Cluster and split the usable pictures and write what was found; the summary last."""
    path = f"{folder}/manifest.parquet"
    manifest.write(storage, path)  # also for whoever is refused below
    warnings = [*inventory.warnings, *judge_share(manifest, data, storage.display(path))]
    is_added = _is_added(manifest, data)
    usable = np.flatnonzero(manifest.is_usable & ~is_added)
    refuse_few_classes(manifest.label[usable], data.classes)
    # By id: neither splits nor codes may depend on the order in which files were listed.
    usable = usable[np.argsort(manifest.row_id[usable])]
    clusters = cluster(manifest.phash[usable], data.near_duplicate_bits)
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    manifest.group[usable] = manifest.row_id[usable][first][index]
    split = assign_splits(
        manifest.label[usable], manifest.group[usable], data.classes, data.split, seed=seed
    )
    manifest.split[usable] = np.array(SPLITS, dtype=object)[split]
    num_added = num_withheld = 0
    if data.added:
        num_added, num_withheld = put_in_train(manifest, is_added, data.near_duplicate_bits)
        inventory.notes.append(
            f"data.added: {num_added} pictures went to train; {num_withheld} were left out, for "
            "val or test has them or one like them"
        )
    manifest.write(storage, path)
    drawn = data.source == "procedural"
    paths = ",".join(source.path for source in data.sources)
    summary = DataSummary(
        source=f"procedural:{data.samples}" if drawn else f"image-folders:{paths}",
        path=folder,
        digest=manifest.digest(),
        label="class",
        classes=data.classes,
        scan=_scan_summary(manifest, path),
        splits={name: _split_summary(manifest, name, data.classes) for name in SPLITS},
        grouped_by="near-duplicates",
        num_added=num_added,
        num_withheld=num_withheld,
        leakage=LeakageReport(
            duplicates=DuplicateReport(
                num_exact=_num_exact(manifest), num_near=len(usable) - len(first)
            ),
            notes=inventory.notes,
        ),
    )
    found = [DRAWN] if drawn else doubts(manifest, summary, data.split)
    summary = summary.model_copy(update={"warnings": [*warnings, *found]})
    write_summary(storage, summary)
    return summary


def _scan_summary(manifest: Manifest, path: str) -> ScanSummary:
    left_out = Counter(manifest.status[~manifest.is_usable].tolist())
    mends = ",".join(filter(None, manifest.converted[manifest.is_usable]))
    return ScanSummary(
        manifest=path,
        num_files=len(manifest),
        num_usable=int(manifest.is_usable.sum()),
        left_out=dict(sorted(left_out.items())),
        converted=dict(sorted(Counter(filter(None, mends.split(","))).items())),
    )


def _split_summary(manifest: Manifest, name: str, classes: Sequence[str]) -> SplitSummary:
    rows = manifest.rows(name)
    counts = np.bincount(rows.label, minlength=len(classes))
    return SplitSummary(
        num_rows=len(rows),
        num_groups=len(np.unique(rows.group)),
        class_counts={c: int(count) for c, count in zip(classes, counts, strict=True) if count},
        digest=rows.digest(),
    )


def _num_exact(manifest: Manifest) -> int:
    """Decodable pictures that repeat another's bytes."""
    decoded = manifest.sha256[~np.isin(manifest.status, REASONS)]
    return len(decoded) - len(set(decoded))
