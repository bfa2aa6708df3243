"""Moving pictures as latents without an autoencoder: animated PNGs, frame by frame; GIFs to look at."""

# Shapes: C T H W latent, T frames.

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.data.codec import decode_pixels, pixels_to_latent
from oneflow_dist.data.picture import MAX_PIXELS, check_sums, naming_damage, put_on_white

PNG = b"\x89PNG"  # its first bytes


def encode_frames(data: bytes, mode: str, name: str) -> Float32[np.ndarray, "C T H W"]:
    """The frames of an animated PNG on white, in the mode "L" or "RGB", as values in [-1, 1].

    Each is there once, however long it is shown; a picture that stands still has one.

    Raises:
        ValueError: it is none, is damaged, cut off, or all its frames together are over the pixel limit.
    """
    try:
        frames = _decode_animation(data, mode)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; write it again or remove the sample") from error
    return np.stack([pixels_to_latent(np.asarray(frame, dtype=np.uint8)) for frame in frames], axis=1)


def decode_frames(latent: Float32[np.ndarray, "C T H W"]) -> list[Image.Image]:
    """A latent as pictures, see `decode_pixels`."""
    return [decode_pixels(frame) for frame in latent.swapaxes(0, 1)]


def encode_animation(frames: Sequence[Image.Image], milliseconds: int, kind: Literal["png", "gif"]) -> bytes:
    """Grey or RGB frames of one size as a file that repeats for ever, each shown for `milliseconds`.

    A GIF is to look at: it joins equal frames and has 256 colours.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    if kind == "png":  # the same to what is opaque, but equal frames stay apart
        options["blend"] = [number % 2 for number in range(len(frames))]
    frames[0].save(file, kind.upper(), **options)
    return file.getvalue()


def _decode_animation(data: bytes, mode: str) -> list[Image.Image]:
    if data[:4] != PNG:
        raise ValueError("its picture is no readable PNG")
    places, width, height = _scan_png(data)
    if not 0 < len(places) * width * height <= MAX_PIXELS:
        raise ValueError(f"its picture has {len(places)} frames of {width}x{height} pixels, not 1 to {MAX_PIXELS}")
    with naming_damage(), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if picture.size != (width, height):
            raise ValueError("two sizes")
        frames = []
        for place in places:
            picture.seek(place)
            frames.append(put_on_white(picture, mode))
        return frames


@naming_damage()
def _scan_png(data: bytes) -> tuple[range, int, int]:
    """Where Pillow has the frames, behind a picture that is no frame if there is one; then width and height."""
    names = check_sums(data)
    width, height = struct.unpack_from(">2L", data, 16)
    is_apart = b"acTL" in names and b"fcTL" not in names[: names.index(b"IDAT")]
    return range(is_apart, is_apart + max(1, names.count(b"fcTL"))), width, height
