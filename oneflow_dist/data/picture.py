"""An encoded picture of unknown origin becomes grey or RGB pixels, or a reason why not."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
Image.MAX_IMAGE_PIXELS = None  # ours is checked before anything is decoded, and is an error instead of a warning
FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow reads dozens more under any name, some by starting other programs
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error)
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


def read_picture(data: bytes, mode: str, name: str) -> Image.Image:
    """A picture upright and on white, in the mode "L" or "RGB".

    Raises:
        ValueError: as `decode_picture`, with its name.
    """
    try:
        return decode_picture(data, mode)[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}; write it again or remove the sample") from error


def decode_picture(
    data: bytes, mode: str, scale_of: Callable[[int, int], float] | None = None
) -> tuple[Image.Image, int, int]:
    """A picture upright and on white, in the mode "L" or "RGB"; then the width and height of all of it, upright.

    Args:
        scale_of: by how much one of this height and width will shrink at most; a JPEG is decoded no larger than that.
            None: all of it is wanted.

    Raises:
        ValueError: it is not a PNG, JPEG or WebP, is damaged, cut off, or over the pixel limit.
    """
    if not data:
        raise ValueError("its picture is empty (0 bytes)")
    with _open(data) as picture:
        if not (picture.width and picture.height):
            raise ValueError(f"its picture has {picture.width}x{picture.height} pixels")
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"its picture has {picture.width}x{picture.height} pixels, more than {MAX_PIXELS}")
        with naming_damage():
            if picture.format == "PNG":
                check_sums(data)
            turn = _orientation(picture)
            width, height = picture.size[::-1] if turn in SIDEWAYS else picture.size
            if scale_of is not None:
                scale = scale_of(height, width)
                picture.draft(mode, (math.ceil(scale * picture.width), math.ceil(scale * picture.height)))
            picture.load()
            upright = picture.transpose(TURNS[turn]) if turn in TURNS else picture
            return put_on_white(upright, mode), width, height


@contextmanager
def naming_damage() -> Iterator[None]:
    """Inside, whatever is raised of a damaged picture is a ValueError that says so."""
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"its picture is broken ({error})") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except BROKEN as error:
        raise ValueError("its picture is no readable PNG, JPEG or WebP") from error


def check_sums(data: bytes) -> list[bytes]:
    """The names of all parts of a PNG but the last, after comparing their checksums: Pillow skips those of pixels."""
    names, start = [], 8  # after the signature
    while data[start + 4 : start + 8] != b"IEND":
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if end + 4 > len(data):
            raise ValueError("cut off")
        if zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"bad checksum of its {data[start + 4 : start + 8]!r}")
        names.append(data[start + 4 : start + 8])
        start = end + 4
    return names


def _orientation(picture: Image.Image) -> int:
    """How the camera was held; upright where the picture's EXIF is unreadable."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except (*BROKEN, TypeError):
        return 1


def put_on_white(picture: Image.Image, mode: str) -> Image.Image:
    """A picture in the mode "L" or "RGB"; what is transparent becomes white."""
    if picture.mode.startswith("I"):  # 16 bits, of which `convert` would keep the lower eight
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert(mode)
    if not picture.has_transparency_data:
        return picture.convert(mode)
    opaque = Image.new("RGB", picture.size, "white")
    with_alpha = picture.convert("RGBA")
    opaque.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return opaque.convert(mode)
