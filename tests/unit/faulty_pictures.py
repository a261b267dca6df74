"""A set of pictures with each fault that is met in the wild, and what shall be found of each."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_jobs.data.images.procedural import draw_picture

MAX_PIXELS = 64 * 64
CLASSES = ["glass_food_jars", "shoes"]

# name -> (status, what was converted)
EXPECTED = {
    "glass_food_jars/conflict.jpg": ("conflicting-label", ""),
    "glass_food_jars/default/good-0.jpg": ("ok", ""),
    "glass_food_jars/default/good-1.jpg": ("ok", ""),
    "glass_food_jars/real_world/good-2.JPG": ("ok", ""),
    "shoes/alpha.png": ("ok", "alpha"),
    "shoes/animated.gif": ("animated", ""),
    "shoes/animated.png": ("animated", ""),
    "shoes/animated.webp": ("animated", ""),
    "shoes/bomb.png": ("too-large", ""),
    "shoes/broken-exif.jpg": ("ok", "exif-rotated"),
    "shoes/cmyk.jpg": ("ok", "cmyk"),
    "shoes/conflict.jpg": ("conflicting-label", ""),
    "shoes/copy.jpg": ("duplicate", "cmyk"),
    "shoes/corrupt.jpg": ("corrupt", ""),
    "shoes/corrupt.png": ("corrupt", ""),
    "shoes/deep-rgb.png": ("ok", "16-bit"),
    "shoes/deep.png": ("ok", "16-bit,grayscale"),
    "shoes/denied.jpg": ("unreadable", ""),
    "shoes/empty.jpg": ("empty", ""),
    "shoes/good-3.jpg": ("ok", ""),
    "shoes/gray.jpg": ("ok", "grayscale"),
    "shoes/large.png": ("too-large", ""),
    "shoes/palette-alpha.png": ("ok", "palette,alpha"),
    "shoes/palette.png": ("ok", "palette"),
    "shoes/phone.heic": ("not-a-picture", ""),
    "shoes/rotated.jpg": ("ok", "exif-rotated"),
    "shoes/still.mpo": ("ok", ""),
    "shoes/text.jpg": ("not-a-picture", ""),
    "shoes/truncated.jpg": ("truncated", ""),
    "shoes/truncated.png": ("truncated", ""),
    "shoes/truncated.webp": ("truncated", ""),
    "shoes/zz-copy-of-good.jpg": ("duplicate", ""),
}
SKIPPED = ("notes.txt", "shoes/.DS_Store", "shoes/._good-3.jpg", "shoes/Thumbs.db")


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def picture(index: int, size: int = 32) -> Image.Image:
    return draw_picture(0, index, 0, size)


def rotated() -> bytes:
    """A picture 24 wide x 40 high, red on top and blue below, stored lying on its side."""
    upright = Image.new("RGB", (24, 40), "blue")
    upright.paste("red", (0, 0, 24, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    return encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def broken_exif() -> bytes:
    """An orientation, and a text under a tag that holds numbers: it cannot be written anew."""
    tags = struct.pack(">2HI4s", 0x0112, 3, 1, b"\0\6\0\0")
    tags += struct.pack(">2HI4s", 0x0145, 2, 4, b"abc\0")
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + tags + bytes(4)


def deep_gray() -> bytes:
    """16-bit grey from black to white, left to right, 32 x 32."""
    ramp = np.linspace(0, 0xFFFF, 32).round().astype(np.uint16)
    return encode(Image.fromarray(np.tile(ramp, (32, 1))), "PNG")


def deep_rgb() -> bytes:
    """A PNG of 16 bits a channel, 8 x 8, all 0xC000, 0x4000, 0x8000; Pillow cannot write one."""
    row = b"\0" + struct.pack(">3H", 0xC000, 0x4000, 0x8000) * 8
    header = struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b""))


def bomb() -> bytes:
    """A PNG that says it is 60,000 px square, and has not one of them."""
    return png((b"IHDR", struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b""))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_faulty_set(root: Path) -> None:
    """Write every file of `EXPECTED` and `SKIPPED` below a folder."""
    first, second = picture(0), picture(1)
    see_through = first.copy()
    see_through.putalpha(128)
    moving: dict[str, Any] = {"save_all": True, "append_images": [second]}
    jpeg, flat_png, webp = (encode(picture(2, 64), kind) for kind in ("JPEG", "PNG", "WEBP"))
    contents = {
        "glass_food_jars/conflict.jpg": encode(picture(3), "JPEG"),
        "shoes/conflict.jpg": encode(picture(3), "JPEG"),
        "glass_food_jars/default/good-0.jpg": encode(picture(4), "JPEG"),
        "glass_food_jars/default/good-1.jpg": encode(picture(5), "JPEG"),
        "glass_food_jars/real_world/good-2.JPG": encode(picture(6), "JPEG"),
        "shoes/good-3.jpg": encode(picture(7), "JPEG"),
        "shoes/copy.jpg": encode(picture(8).convert("CMYK"), "JPEG"),
        "shoes/cmyk.jpg": encode(picture(8).convert("CMYK"), "JPEG"),
        "shoes/zz-copy-of-good.jpg": encode(picture(7), "JPEG"),
        "shoes/alpha.png": encode(see_through, "PNG"),
        "shoes/animated.gif": encode(first, "GIF", **moving),
        "shoes/animated.png": encode(first, "PNG", **moving),
        "shoes/animated.webp": encode(first, "WEBP", **moving),
        "shoes/bomb.png": bomb(),
        "shoes/broken-exif.jpg": encode(picture(9), "JPEG", exif=broken_exif()),
        "shoes/corrupt.jpg": jpeg[:20] + bytes(200) + jpeg[220:],
        "shoes/corrupt.png": flat_png[:300] + b"\xff" * 40 + flat_png[340:],
        "shoes/deep-rgb.png": deep_rgb(),
        "shoes/deep.png": deep_gray(),
        "shoes/denied.jpg": encode(picture(10), "JPEG"),
        "shoes/empty.jpg": b"",
        "shoes/gray.jpg": encode(picture(11).convert("L"), "JPEG"),
        "shoes/large.png": encode(Image.new("RGB", (65, 64)), "PNG"),
        "shoes/palette-alpha.png": encode(picture(12).convert("P"), "PNG", transparency=0),
        "shoes/palette.png": encode(picture(13).convert("P"), "PNG"),
        "shoes/phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "shoes/rotated.jpg": rotated(),
        "shoes/still.mpo": encode(picture(14), "MPO", save_all=True, append_images=[picture(15)]),
        "shoes/text.jpg": b"<html>404 Not Found</html>",
        "shoes/truncated.jpg": jpeg[: len(jpeg) // 2],
        "shoes/truncated.png": flat_png[: len(flat_png) // 2],
        "shoes/truncated.webp": webp[: len(webp) // 2],
        **dict.fromkeys(SKIPPED, b"no picture"),
    }
    # of two copies the first by name stays: shoes/cmyk.jpg, not shoes/copy.jpg
    assert set(contents) == {*EXPECTED, *SKIPPED}
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
