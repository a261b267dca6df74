"""Added pictures: for train alone. Val and test stay as they are without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.images.manifest import Manifest
from ray_jobs.data.images.near_duplicates import cluster
from ray_jobs.errors import DataError


def mark_added_copies(manifest: Manifest, is_added: NDArray[np.bool_]) -> None:
    """Leave out added pictures that are files of the others again; in place. The others stay.

    Args:
        is_added: shape [N].
    """
    first: dict[str, int] = {}
    for i in np.flatnonzero(~is_added & (manifest.sha256 != "")).tolist():
        first.setdefault(manifest.sha256[i], i)
    for i in np.flatnonzero(is_added & manifest.is_usable).tolist():
        other = first.get(manifest.sha256[i])
        if other is not None:
            is_same = manifest.label[i] == manifest.label[other]
            manifest.status[i] = "duplicate" if is_same else "conflicting-label"
            manifest.detail[i] = f"the same bytes as {manifest.path[other]}"


def put_in_train(manifest: Manifest, is_added: NDArray[np.bool_], max_bits: int) -> tuple[int, int]:
    """Put added pictures into train, but for those like one of val or test, if only by a chain of
    near ones; in place. Returns how many went to train, and how many val or test has.

    Args:
        is_added: shape [N]; the splits of the others are made.
        max_bits: two hashes are near if they differ in at most this many bits.

    Raises:
        DataError: none is left.
    """
    held = np.flatnonzero((manifest.split == "val") | (manifest.split == "test"))
    added = np.flatnonzero(is_added & manifest.is_usable)
    added = added[np.argsort(manifest.row_id[added])]
    is_copy = is_added & ~manifest.is_usable & np.isin(manifest.sha256, manifest.sha256[held])
    codes = cluster(manifest.phash[np.r_[held, added]], max_bits)
    is_near = np.isin(codes[len(held) :], codes[: len(held)])
    manifest.status[added[is_near]] = "duplicate"
    manifest.detail[added[is_near]] = "it looks like a picture of val or test"
    kept = added[~is_near]
    num_withheld = int(is_near.sum() + is_copy.sum())
    if not len(kept):
        raise DataError(
            f"data.added: nothing of it can be trained on: of its {is_added.sum()} pictures "
            f"{num_withheld} are like one of val or test, and the others cannot be used. Name "
            "other folders"
        )
    _, first, index = np.unique(
        cluster(manifest.phash[kept], max_bits), return_index=True, return_inverse=True
    )
    manifest.group[kept] = manifest.row_id[kept][first][index]
    manifest.split[kept] = "train"
    return len(kept), num_withheld
