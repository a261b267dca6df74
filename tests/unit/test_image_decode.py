from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_jobs.data.images.decode import FORMATS, REASONS, BadPicture, decode
from tests.unit.faulty_pictures import (
    EXPECTED,
    MAX_PIXELS,
    deep_gray,
    deep_rgb,
    encode,
    picture,
    rotated,
    write_faulty_set,
)

WHOLE = {kind: encode(picture(0), kind) for kind in FORMATS}


def pixels(content: bytes) -> np.ndarray:
    image, _ = decode(content, max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_a_sound_picture_is_what_was_stored(kind: str) -> None:
    image = picture(0).quantize(16).convert("RGB")  # so that a GIF can hold it
    assert np.array_equal(pixels(encode(image, kind)), np.asarray(image))


def test_each_fault_gets_its_word(tmp_path: Path) -> None:
    write_faulty_set(tmp_path)
    others = ("duplicate", "conflicting-label", "unreadable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's must not escape
        for name, (status, converted) in EXPECTED.items():
            content = (tmp_path / name).read_bytes()
            if status == "ok":
                image, mended = decode(content, max_pixels=MAX_PIXELS)
                assert (image.mode, ",".join(mended)) == ("RGB", converted), name
            elif status not in others:
                with pytest.raises(BadPicture) as raised:
                    decode(content, max_pixels=MAX_PIXELS)
                assert raised.value.reason == status, name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_picture_cut_short_is_never_filled_with_grey(kind: str, share: float) -> None:
    content = WHOLE[kind]
    with pytest.raises(BadPicture, match=r"^truncated: ") as raised:
        decode(content[: int(share * len(content))], max_pixels=MAX_PIXELS)
    assert raised.value.reason == "truncated"


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = pixels(deep_gray())[0]
    assert np.abs(ramp[:, 0] - np.linspace(0, 255, 32)).max() <= 1
    assert (ramp == ramp[:, :1]).all()
    assert (pixels(deep_rgb()) == (0xC0, 0x40, 0x80)).all()


def test_cmyk_keeps_its_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert np.abs(pixels(encode(image, "JPEG")).astype(int) - (255, 0, 0)).max() < 10


@pytest.mark.parametrize(("opacity", "expected"), [(0, 255), (255, 0), (128, 127)])
def test_what_is_see_through_lies_on_white(opacity: int, expected: int) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, opacity))
    assert (pixels(encode(image, "PNG")) == expected).all()


def test_a_rotated_picture_is_set_upright() -> None:
    image = pixels(rotated())
    assert image.shape == (40, 24, 3)
    assert np.abs(image[2, 2].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(image[-3, -3].astype(int) - (0, 0, 255)).max() < 12


@pytest.mark.parametrize("value", [0, 70_000])
def test_pixels_of_no_known_range_are_refused(value: int) -> None:
    deep = Image.fromarray(np.array([[0, value]], np.int32))
    if value:
        with pytest.raises(BadPicture, match="corrupt: 32-bit pixels: no telling what is white"):
            pixels(encode(deep, "TIFF"))
    with pytest.raises(BadPicture, match="corrupt: floating-point pixels"):
        pixels(encode(deep.convert("F"), "TIFF"))


def test_the_size_decides_before_any_pixel_is_decoded() -> None:
    content = encode(Image.new("RGB", (100, 50)), "PNG")
    assert decode(content, max_pixels=5000)[0].size == (100, 50)
    with pytest.raises(BadPicture) as raised:
        decode(content[:60], max_pixels=4999)  # the header stands; there is nothing to decode
    assert str(raised.value) == "too-large: 100 x 50 pixels, over data.max_pixels"
    assert raised.value.size == (100, 50)


def test_a_bad_picture_crosses_processes() -> None:
    bad = pickle.loads(pickle.dumps(BadPicture("corrupt", "why", (3, 4))))
    assert (bad.reason, bad.detail, bad.size) == ("corrupt", "why", (3, 4))


@pytest.mark.parametrize("kind", FORMATS)
def test_no_damage_to_a_header_escapes(kind: str) -> None:
    reasons = set()
    for i in range(120):
        for value in (0, 255):
            content = bytearray(WHOLE[kind])
            content[i] = value
            try:
                decode(bytes(content), max_pixels=MAX_PIXELS)
            except BadPicture as bad:
                reasons.add(bad.reason)
    assert "corrupt" in reasons


@given(
    kind=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    kept=st.floats(0, 1),
)
def test_any_bytes_are_a_picture_or_a_bad_one(
    kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[int(place**3 * len(content))] = value  # headers are hit most
    reason, detail = "ok", ""
    try:
        image, _ = decode(bytes(content[: int(kept * len(content))]), max_pixels=MAX_PIXELS)
    except BadPicture as bad:
        reason, detail = bad.reason, bad.detail
    assert reason in ("ok", *REASONS)
    assert "object at 0x" not in detail
    assert reason != "ok" or (image.mode == "RGB" and image.width * image.height <= MAX_PIXELS)
