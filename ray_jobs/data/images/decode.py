"""From the bytes of a picture to RGB pixels, or one word for why not. Only heavy code imports this.

Pillow raises many kinds of error on bytes from outside, and some faults it only warns of or passes
over in silence; here each picture either comes out whole or as a BadPicture.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ray_jobs.storage import brief_cause

Reason = Literal[
    "corrupt", "truncated", "empty", "animated", "too-large", "not-a-picture", "unreadable"
]
REASONS: tuple[Reason, ...] = get_args(Reason)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_GRAY_MODES = ("1", "L", "LA", "La", "I")
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright

# What Pillow's parsers were seen to raise on damaged files: they index, unpack and inflate bytes
# that they trust. Anything else is a fault of this program and shall be seen.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError,
    OverflowError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

# Pillow's own limit is one for the process, and twice as much is an error of its own: each
# picture's size is checked against `max_pixels` below, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


class BadPicture(ValueError):
    """A picture that cannot be used. `size` is (width, height) where the header tells it."""

    def __init__(self, reason: Reason, detail: str, size: tuple[int, int] = (0, 0)):
        super().__init__(reason, detail, size)  # all of them, so that it can cross processes
        self.reason, self.detail, self.size = reason, detail, size

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def decode(content: bytes, *, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB picture, upright, and what was mended.

    Mended are `cmyk`, `palette`, `16-bit` (scaled to 8), `grayscale`, `alpha` (composited on
    white) and `exif-rotated`.

    Raises:
        BadPicture: it cannot be decoded in full, moves, or has more than `max_pixels` pixels.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow would fill missing rows with grey"
    if not content:
        raise BadPicture("empty", "0 bytes")
    try:
        # Pillow warns of what it passes over, such as a damaged EXIF block.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content, max_pixels)
    except BadPicture:
        raise
    except _DECODE_ERRORS as error:
        raise _bad_picture(content, error) from None


def _decode(content: bytes, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = picture.size
    if width * height > max_pixels:
        raise BadPicture(
            "too-large", f"{width} x {height} pixels, over data.max_pixels", picture.size
        )
    # A phone's MPO holds a still and its depth map or preview: the first frame is the picture.
    num_frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
    if num_frames > 1:
        raise BadPicture("animated", f"{num_frames} frames", picture.size)
    is_deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    picture.load()
    mended = _mode_mends(picture, is_deep)
    orientation = picture.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        picture = _upright(picture, orientation)
        mended.append("exif-rotated")
    return _to_rgb(picture), tuple(mended)


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turned and flipped as EXIF says (Exif 2.32, tag 0x0112)."""
    # Pillow writes the whole block anew, which fails for one that is damaged elsewhere.
    only_orientation = Image.Exif()
    only_orientation[_ORIENTATION] = orientation
    picture = picture.copy()
    picture.info["exif"] = only_orientation.tobytes()
    upright = ImageOps.exif_transpose(picture)
    assert upright is not None, "only in place there is no result"
    return upright


def _mode_mends(picture: Image.Image, is_deep: bool) -> list[str]:
    """What `_to_rgb` changes."""
    mode = picture.mode
    flags = {
        "cmyk": mode == "CMYK",
        "palette": mode in ("P", "PA"),
        "16-bit": is_deep or mode == "I" or mode.startswith("I;16"),
        "grayscale": mode in _GRAY_MODES or mode.startswith("I;16"),
        "alpha": picture.has_transparency_data,
    }
    return [name for name, holds in flags.items() if holds]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise BadPicture("corrupt", "floating-point pixels: no telling what is white", picture.size)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadPicture("corrupt", "32-bit pixels: no telling what is white", picture.size)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    return picture.convert("RGB")


def _bad_picture(content: bytes, error: Exception) -> BadPicture:
    is_riff = content.startswith(b"RIFF")
    if is_riff and int.from_bytes(content[4:8], "little") + 8 > len(content):
        return BadPicture("truncated", "shorter than its header says")
    if isinstance(error, EOFError) or "truncat" in str(error).lower():
        return BadPicture("truncated", brief_cause(error))
    if not isinstance(error, UnidentifiedImageError):
        return BadPicture("corrupt", brief_cause(error))
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return BadPicture("not-a-picture", "HEIC, which Pillow cannot read: save it as JPEG")
    if content.startswith(_SIGNATURES) or content[4:8] == b"ftyp":
        return BadPicture("corrupt", "its header cannot be read")
    return BadPicture("not-a-picture", f"none of {', '.join(FORMATS)}")
