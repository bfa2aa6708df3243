"""The pixel codec: images as latents without an autoencoder."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError

from oneflow_dist.config import ImageConfig

MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = 64 * 1024 * 1024
Image.MAX_IMAGE_PIXELS = None  # ours is checked before anything is decoded, and is an error instead of a warning


def encode_pixels(data: bytes, image: ImageConfig, name: str) -> Float32[np.ndarray, "C H W"]:
    """An encoded picture as values in [-1, 1].

    Raises:
        ValueError: not a readable picture, or not of the configured size.
    """
    if image.channels not in MODES:
        raise ValueError(f"image.channels: {image.channels} is not 1 (grey) or 3 (colour), the channels of pixels")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{name}: {picture.width}x{picture.height} pixels, more than {MAX_PIXELS}; shrink it")
            pixels = np.asarray(picture.convert(MODES[image.channels]), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{name}: broken image ({error}); write it again or remove the sample") from error
    if pixels.shape[:2] != (image.height, image.width):
        raise ValueError(
            f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but image.width x image.height is "
            f"{image.width}x{image.height}; resize the images or mend the config"
        )
    return pixels_to_latent(pixels)


def pixels_to_latent(pixels: np.ndarray) -> Float32[np.ndarray, "C H W"]:
    """Grey [H, W] or colour [H, W, 3] pixel values 0 to 255 as values in [-1, 1]."""
    channels_last = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    return channels_last.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1.0)


def decode_pixels(latent: Float32[np.ndarray, "C H W"]) -> Image.Image:
    """A latent as a picture, values beyond [-1, 1] clipped; of more than three channels the first three."""
    pixels = np.clip(np.rint((latent + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0))
