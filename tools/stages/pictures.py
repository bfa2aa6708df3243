"""Pictures of one size for all stages, and digits as such pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tools.digits.grammar import read_images
from tools.shards import encode_png

SIDE = 32  # pixels of a picture that a model paints
SMALL = 8  # of a digit that is only looked at: one row of the trunk, so that many fit into a step
NUM_BOXES = 3  # of an NLVR picture, side by side and two thirds of it


def shrink(png: bytes, side: int) -> bytes:
    """A picture as `side` x `side` RGB pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        return _encode(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def turn(png: bytes, orientation: int) -> bytes:
    """A square picture in one of the 8 ways to lay it on a square; 0 is as it is."""
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.rot90(np.asarray(picture), orientation % 4)
    return encode_png(np.ascontiguousarray(pixels if orientation < 4 else pixels[:, ::-1]))


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
