"""A picture at the size that a network asks for, in one way only: libraries differ, and figures with them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from PIL import Image

WHITE = 255.0


def resize(picture: Image.Image, side: int) -> Float32[np.ndarray, "{side} {side} 3"]:
    """The whole picture as a square of colours from 0 to 255, which are not rounded.

    Pillow's bicubic filter, which is widened where it shrinks, over each colour as floats, as clean-fid resizes.

    Source: arXiv:2104.11222, section 3.
    """
    channels = [
        np.asarray(channel.convert("F").resize((side, side), Image.Resampling.BICUBIC))
        for channel in picture.convert("RGB").split()
    ]
    return np.stack(channels, axis=2).clip(0.0, WHITE)
