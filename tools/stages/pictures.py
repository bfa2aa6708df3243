"""Pictures of one size for all stages, and digits as such pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tools.digits.grammar import read_images
from tools.shards import encode_png

SIDE = 32  # pixels of a picture that a model paints
SMALL = 16  # of a digit in a row: four rows of the trunk
NUM_BOXES = 3  # of an NLVR picture, side by side and two thirds of it


def shrink(png: bytes) -> bytes:
    """A picture as `SIDE` x `SIDE` RGB pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        return _encode(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def cut_boxes(png: bytes) -> list[bytes]:
    """The three boxes of an NLVR picture, each by itself: at this size a whole one could not be told apart."""
    with Image.open(io.BytesIO(png)) as picture:
        rgb = picture.convert("RGB")
        side = rgb.height
        step = (rgb.width - side) // (NUM_BOXES - 1)
        boxes = [rgb.crop((x, 0, x + side, side)) for x in range(0, NUM_BOXES * step, step)]
        return [_encode(box.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for box in boxes]


def enlarge(digit: np.ndarray, side: int) -> bytes:
    """A digit [8, 8] uint8 as `side` x `side` RGB pixels."""
    return encode_png(np.repeat(digit.repeat(side // 8, 0).repeat(side // 8, 1)[..., None], 3, axis=2))


def read_digits(latents: list[np.ndarray]) -> np.ndarray:
    """The digit that the classifier of digits sees in each latent [3, side, side]."""
    return read_images([_to_digit(latent) for latent in latents])


def _to_digit(latent: np.ndarray) -> np.ndarray:
    blocks = latent.shape[1] // 8
    return latent.reshape(3, 8, blocks, 8, blocks).mean((0, 2, 4))[None]


def _encode(picture: Image.Image) -> bytes:
    return encode_png(np.asarray(picture))
