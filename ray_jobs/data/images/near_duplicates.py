"""Pictures that look alike: a perceptual hash, and the clusters of hashes that nearly agree."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 64


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits that survive scaling, recompression and small changes of colour.

    The picture in grey at 32 x 32, its cosine transform, the 8 x 8 lowest frequencies beside the
    constant ones, each against their median (C. Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions", Upper Austria University of Applied Sciences, 2010, 3.2.1).
    """
    from scipy.fft import dctn

    small = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=2.0)
    frequencies = dctn(np.asarray(small, np.float32), norm="ortho")[1:9, 1:9].ravel()
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


def cluster(hashes: NDArray[np.uint64], max_bits: int) -> NDArray[np.int64]:
    """A code for each hash, shape [N]: hashes joined by a chain of near ones share it.

    Args:
        hashes: shape [N].
        max_bits: two hashes are near if they differ in at most this many bits.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct, index = np.unique(hashes, return_inverse=True)
    pairs = near_pairs(distinct, max_bits)
    graph = coo_array(
        (np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])),
        shape=(len(distinct), len(distinct)),
    )
    _, component = connected_components(graph, directed=False)
    return component.astype(np.int64)[index]


def near_pairs(hashes: NDArray[np.uint64], max_bits: int) -> NDArray[np.int64]:
    """All pairs that differ in at most `max_bits` bits, shape [pairs, 2]; some more than once.

    Of `max_bits` + 1 bands of bits at least one is equal in such a pair (M. Norouzi, A. Punjani,
    D. Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012), so only hashes
    that share a band are compared.
    """
    found = [np.empty((0, 2), np.int64)]
    edges = np.linspace(0, HASH_BITS, max_bits + 2).round().astype(int)
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], hashes[order]
        first = np.arange(len(hashes))
        for step in range(1, len(hashes)):  # each with the one `step` places on in its band
            first = first[: np.searchsorted(first, len(hashes) - step)]
            first = first[band[first + step] == band[first]]
            if not len(first):
                break
            near = np.bitwise_count(ordered[first] ^ ordered[first + step]) <= max_bits
            found.append(np.stack([order[first[near]], order[first[near] + step]], axis=1))
    return np.concatenate(found)
