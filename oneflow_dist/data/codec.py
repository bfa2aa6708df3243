"""Images as latents without an autoencoder, and latents as patches."""

# Shapes: C H W latent, p patches, E elements of a patch.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Images
from oneflow_dist.data.picture import read_picture

MODES = {1: "L", 3: "RGB"}


def encode_pixels(data: bytes, image: ImageConfig, name: str) -> Float32[np.ndarray, "C H W"]:
    """An encoded picture of any size that `image.patch_size` divides, as values in [-1, 1].

    Raises:
        ValueError: not a readable picture, or one that patches do not fill.
    """
    if image.channels not in MODES:
        raise ValueError(f"image.channels: {image.channels} is not 1 (grey) or 3 (colour), the channels of pixels")
    pixels = np.asarray(read_picture(data, MODES[image.channels], name), dtype=np.uint8)
    if pixels.shape[0] % image.patch_size or pixels.shape[1] % image.patch_size:
        raise ValueError(
            f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but image.patch_size ({image.patch_size}) must "
            "divide width and height; crop or resize the images"
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


def to_patches(latent: Float[np.ndarray, "C H W"], patch_size: int) -> Float[np.ndarray, "p E"]:
    """Cut a latent into patches, row by row; a patch lists its elements by (row, column, channel)."""
    channels, height, width = latent.shape
    rows, columns = height // patch_size, width // patch_size
    patches = latent.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 2, 4, 0)
    return patches.reshape(rows * columns, -1)


def to_latent(
    patches: Float32[np.ndarray, "p E"], grid: tuple[int, int], image: ImageConfig
) -> Float32[np.ndarray, "C H W"]:
    """The inverse of `to_patches`, for `grid` rows and columns of patches."""
    rows, columns = grid
    size = image.patch_size
    latent = patches.reshape(rows, columns, size, size, image.channels).transpose(4, 0, 2, 1, 3)
    return latent.reshape(image.channels, rows * size, columns * size)


def cut_images(latents: Sequence[Float32[np.ndarray, "C _ _"]], token: Sequence[int], image: ImageConfig) -> Images:
    """Clean images from latents of any shapes; `token` says which tokens of their sample they are."""
    size = image.patch_size
    grid = [(latent.shape[1] // size, latent.shape[2] // size) for latent in latents]
    patches = [to_patches(latent, size) for latent in latents] or [np.zeros((0, image.patch_elements), np.float32)]
    return Images(
        token=np.array(token, dtype=np.int64),
        time=np.ones(len(latents)),
        grid=np.array(grid, dtype=np.int64).reshape(-1, 2),
        patches=patches[0] if len(patches) == 1 else np.concatenate(patches),  # most samples have one: not copied again
    )
