"""What is wrong with a set of pictures, or may be: refusals and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.images.decode import REASONS
from ray_jobs.data.images.manifest import Manifest
from ray_jobs.data.images.spec import ImageDataSpec
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.sections import SplitShares

FEW_CLASS_PICTURES = 10  # fewer pictures of a class in a split make its scores a guess
LARGE_CLUSTER = 0.05  # of the pictures: more are hardly one picture in many versions
SHARE_TOLERANCE = 0.05  # how far a split's share may lie off the one asked for without a word
DRAWN = (
    "these are drawn pictures, no photographs: scores on them show that the training works and say "
    "nothing of real waste. Give your own in data.sources: folders whose subfolders are classes"
)


def judge_share(manifest: Manifest, data: ImageDataSpec, path: str) -> Iterator[str]:
    """Warn of many unusable pictures. `path`: where the manifest is found.

    Raises:
        DataError: they are too many.
    """
    bad = np.flatnonzero(np.isin(manifest.status, REASONS))
    share = len(bad) / len(manifest)
    if share < data.bad_share_warning or not len(bad):
        return
    reasons = ", ".join(
        f"{count} {reason}"
        for reason, count in Counter(manifest.status[bad].tolist()).most_common()
    )
    found = f"{len(bad)} of {len(manifest)} pictures ({share:.1%}) cannot be used: {reasons}"
    if share <= data.bad_share_stop:
        yield f"{found}. Each is listed in {path}"
        return
    examples = ", ".join(f"{manifest.path[i]} ({manifest.detail[i]})" for i in bad[:3])
    raise DataError(
        f"{found}; such as {examples}. Each is listed in {path}. Mend or delete them, or raise "
        f"data.bad_share_stop (now {data.bad_share_stop:g})"
    )


def refuse_few_classes(label: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Raise DataError if there is nothing to tell apart."""
    having = [classes[c] for c in np.unique(label)]
    if len(having) < 2:
        raise DataError(
            f"pictures of {len(having)} {'class' if len(having) == 1 else 'classes'} "
            f"{f'({having[0]!r}) ' if having else ''}are no task: at least two are needed. Add "
            "sources, or map their folders to more classes in data.sources"
        )


def doubts(manifest: Manifest, summary: DataSummary, shares: SplitShares) -> Iterator[str]:
    """What a reader of the scores should know about the classes and splits."""
    counts = {name: split.class_counts for name, split in summary.splits.items()}
    missing = [name for name in summary.classes if name not in counts["train"]]
    if missing:
        yield (
            f"{len(missing)} of {len(summary.classes)} classes have no usable picture and cannot "
            f"be learned: {', '.join(missing)}"
        )
    for name in ("val", "test"):
        few = [c for c, count in counts[name].items() if count < FEW_CLASS_PICTURES]
        if few:
            yield (
                f"{name} holds fewer than {FEW_CLASS_PICTURES} pictures of {', '.join(few)}: what "
                "is measured there of each is a guess"
            )
    yield from _cluster_doubts(manifest)
    num_split = {name: split.num_rows for name, split in summary.splits.items()}
    num_split["train"] -= summary.num_added  # which were not split
    found = {name: count / sum(num_split.values()) for name, count in num_split.items()}
    if any(abs(found[name] - getattr(shares, name)) > SHARE_TOLERANCE for name in found):
        yield (
            f"whole groups make the splits {' / '.join(f'{x:.1%}' for x in found.values())} of the "
            f"pictures, where {' / '.join(f'{getattr(shares, name):.0%}' for name in found)} was "
            "asked for"
        )


def _cluster_doubts(manifest: Manifest) -> Iterator[str]:
    usable = np.flatnonzero(manifest.is_usable)
    codes, index, sizes = np.unique(manifest.group[usable], return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([index, manifest.label[usable]], axis=1), axis=0)
    is_mixed = np.bincount(pairs[:, 0], minlength=len(codes)) > 1
    if is_mixed.any():
        first = usable[index == np.flatnonzero(is_mixed)[0]]
        other = next(i for i in first if manifest.label[i] != manifest.label[first[0]])
        yield (
            f"{sizes[is_mixed].sum()} pictures look alike, but are of different classes "
            f"({is_mixed.sum()} near-duplicate clusters), such as {manifest.path[first[0]]} and "
            f"{manifest.path[other]}: check their folders"
        )
    if sizes.max() > max(FEW_CLASS_PICTURES, LARGE_CLUSTER * len(usable)):
        largest = usable[index == sizes.argmax()]
        yield (
            f"{sizes.max()} pictures count as near-duplicates of each other, such as "
            f"{manifest.path[largest[0]]}; if they are not, lower data.near_duplicate_bits"
        )
