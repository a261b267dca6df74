from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ray_jobs.data.images.near_duplicates import cluster, near_pairs, perceptual_hash
from ray_jobs.data.images.procedural import draw_picture
from tests.unit.faulty_pictures import encode


def distance(a: Image.Image, b: Image.Image) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def recompressed(picture: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(picture, "JPEG", quality=75)))


@pytest.mark.parametrize("index", range(5))
def test_the_hash_survives_what_copies_go_through(index: int) -> None:
    picture = draw_picture(0, index, 0, 128)
    assert distance(picture, picture.resize((96, 96))) <= 4
    assert distance(picture, ImageEnhance.Brightness(picture).enhance(0.8)) <= 4
    assert distance(picture, recompressed(picture)) <= 4
    assert distance(picture, draw_picture(0, index, 1, 128)) > 8


def test_half_of_a_hash_is_set() -> None:
    assert perceptual_hash(draw_picture(0, 0, 0, 64)).bit_count() == 32


@given(st.data(), st.integers(0, 16))
def test_every_near_pair_is_found_and_no_other(data: st.DataObject, max_bits: int) -> None:
    bases = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    hashes = []
    for base in bases:
        for flips in data.draw(st.lists(st.sets(st.integers(0, 63), max_size=18), max_size=6)):
            hashes.append(base ^ sum(1 << bit for bit in flips))
    distinct = np.unique(np.array([*bases, *hashes], np.uint64))
    bits = np.bitwise_count(distinct[:, None] ^ distinct)
    expected = {(i, j) for i, j in np.argwhere(bits <= max_bits).tolist() if i < j}
    found = {tuple(sorted(pair)) for pair in near_pairs(distinct, max_bits).tolist()}
    assert found == expected


@pytest.mark.parametrize("max_bits", range(17))
def test_bits_that_differ_may_lie_anywhere(max_bits: int) -> None:
    spread = sum(1 << int((k + 0.5) * 64 / max_bits) for k in range(max_bits))
    assert cluster(np.array([0, spread], np.uint64), max_bits).tolist() == [0, 0]
    one_more = np.array([0, spread | 1 << 63], np.uint64)
    assert cluster(one_more, max_bits).tolist() == [0, 1]


def test_a_chain_of_near_hashes_is_one_cluster() -> None:
    hashes = np.array([0, 0b1111, 0b11111111, 0xFFFF << 32, 0], np.uint64)
    codes = cluster(hashes, 4)
    assert len(set(codes[[0, 1, 2, 4]].tolist())) == 1
    assert codes[3] != codes[0]
    assert len(np.unique(cluster(hashes, 3))) == 4
