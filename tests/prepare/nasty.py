"""Pictures as they are found: every way of storing one that cameras, editors and the web have, and every damage."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from oneflow_dist.data.picture import ORIENTATION

RED, BLUE, WHITE = (220, 30, 20), (20, 40, 210), (255, 255, 255)
SIDE = 48


def halves(width: int = SIDE, height: int = SIDE, mode: str = "RGB") -> Image.Image:
    """Red at the left, blue at the right."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture.convert(mode)


def store(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    picture.close()
    return buffer.getvalue()


def turned(number: int, kind: str = "JPEG") -> bytes:
    """What a camera stores that was held so that the picture is upright after the turn that `number` says."""
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return store(halves(SIDE, SIDE), kind, exif=exif, quality=95)


def profile(space: str = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def swapped_profile() -> bytes:
    """A profile in which red is what sRGB calls green, and the other way round: its colorants are exchanged."""
    content = bytearray(profile())
    places = {}
    for number in range(int.from_bytes(content[128:132])):
        name, offset, size = struct.unpack(">4sII", content[132 + 12 * number : 144 + 12 * number])
        places[name] = (offset, size)
    (red, size), (green, _) = places[b"rXYZ"], places[b"gXYZ"]
    content[red : red + size], content[green : green + size] = content[green : green + size], content[red : red + size]
    return bytes(content).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def with_alpha(alpha: int | None) -> Image.Image:
    """The halves with this alpha all over, or transparent at the right (None)."""
    picture = halves(mode="RGBA")
    band = Image.new("L", picture.size, 255 if alpha is None else alpha)
    if alpha is None:
        band.paste(0, (SIDE // 2, 0, SIDE, SIDE))
    picture.putalpha(band)
    return picture


def transparent_palette() -> bytes:
    picture = halves().quantize(4)
    index = picture.getpixel((SIDE - 1, 0))
    return store(picture, "PNG", transparency=index)


def frames(kind: str) -> bytes:
    others = [Image.new("RGB", (SIDE, SIDE), (0, 255 // n, 0)) for n in (1, 2)]
    return store(halves(), kind, save_all=True, append_images=others, duration=100)


def deep_grey() -> bytes:
    values = np.full((SIDE, SIDE), 0x2000, dtype=np.uint16)
    values[:, SIDE // 2 :] = 0xE000
    return store(Image.fromarray(values), "PNG")


def png(width: int, height: int, depth: int, colour: int, rows: bytes, damage: bool = False) -> bytes:
    """A PNG from its parts; `rows` with their filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content) ^ (damage and name == b"IDAT")
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_colour() -> bytes:
    left, right = (struct.pack(">HHH", *(256 * value for value in colour)) for colour in (RED, BLUE))
    return png(SIDE, SIDE, 16, 2, (b"\0" + left * (SIDE // 2) + right * (SIDE // 2)) * SIDE)


def bad_checksum() -> bytes:
    return png(SIDE, SIDE, 8, 2, (b"\0" + bytes(RED) * SIDE) * SIDE, damage=True)


def bomb() -> bytes:
    """A million times a million pixels in a few bytes."""
    return png(1_000_000, 1_000_000, 8, 2, bytes(64))


def text_bomb() -> bytes:
    """A compressed text of 64 MB beside a small picture."""
    whole = store(halves(), "PNG")
    content = b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return whole[:33] + chunk + whole[33:]


def cut(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(share * len(content))]


def cmyk(with_profile: bool = False) -> bytes:
    """A JPEG for printers, inverted as Adobe's are: Pillow writes them so."""
    own = {"icc_profile": profile()} if with_profile else {}
    return store(halves(mode="CMYK"), "JPEG", quality=95, **own)


def floats() -> bytes:
    return store(Image.fromarray(np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)), "TIFF")


def lab() -> bytes:
    to_lab = ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(halves(), ImageCms.createProfile("sRGB"), to_lab, outputMode="LAB")
    assert converted is not None
    return store(converted, "TIFF")


def pages() -> bytes:
    return store(halves(), "TIFF", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
Make = Callable[[], bytes]
