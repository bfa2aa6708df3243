"""Latents as patches, and pixels as latents."""

# Shapes: C H W latent, p patches, E elements of a patch.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from oneflow_dist.containers import Pieces
from oneflow_dist.modality import ModalityConfig, Sides, on_axes
from oneflow_dist.views import read_view


def check_sides(sides: tuple[int, ...], modality: ModalityConfig, name: str) -> None:
    """Refuse a latent that patches do not fill."""
    if len(sides) != modality.dimensions or any(a % b or a == 0 for a, b in zip(sides, modality.patch, strict=True)):
        raise ValueError(
            f"{name}: {list(sides)} elements, which patches of {list(modality.patch)} do not fill; crop, pad or resize "
            "it (oneflow precompute --multiple-of), or change the modality's patch"
        )


def pixels_to_latent(pixels: np.ndarray) -> Float32[np.ndarray, "C H W"]:
    """Grey [H, W] or colour [H, W, 3] pixel values 0 to 255 as values in [-1, 1]."""
    channels_last = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    return channels_last.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1.0)


def decode_pixels(latent: Float32[np.ndarray, "C H W"]) -> Image.Image:
    """A latent as a picture, values beyond [-1, 1] clipped; of more than three channels the first three."""
    pixels = np.clip(np.rint((latent + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0))


def to_patches(latent: Shaped[np.ndarray, "C *shape"], patch: Sides) -> Shaped[np.ndarray, "p E"]:
    """Cut a latent into patches, in the order of its sides; a patch lists its elements by (side, ..., channel)."""
    (t, h, w), (pt, ph, pw) = on_axes(latent.shape[1:]), patch
    parts = latent.reshape(-1, t // pt, pt, h // ph, ph, w // pw, pw).transpose(1, 3, 5, 2, 4, 6, 0)
    return parts.reshape((t // pt) * (h // ph) * (w // pw), -1)


def to_latent(
    patches: Float32[np.ndarray, "p E"], grid: Sequence[int], modality: ModalityConfig
) -> Float32[np.ndarray, "C *shape"]:
    """The inverse of `to_patches`, for `grid` patches along time, height and width."""
    (t, h, w), ((pt, ph, pw), num_elements) = grid, packed_patch(modality)
    channels = num_elements // (pt * ph * pw)
    latent = patches.reshape(t, h, w, pt, ph, pw, channels).transpose(6, 0, 3, 1, 4, 2, 5)
    sides = {0: (), 1: (t * pt,), 2: (h * ph, w * pw), 3: (t * pt, h * ph, w * pw)}
    return latent.reshape(channels, *sides[modality.dimensions])


def to_latents(pieces: Pieces, modality: ModalityConfig) -> list[Float32[np.ndarray, "C *_"]]:
    """Each piece of a modality as a latent of its own shape: the inverse of `cut_pieces`."""
    patches = np.split(pieces.patches, np.cumsum(pieces.num_patches)[:-1]) if len(pieces) else []
    return [to_latent(part, grid, modality) for part, grid in zip(patches, pieces.grid.tolist(), strict=True)]


def cut_pieces(
    latents: Sequence[Float32[np.ndarray, "C *_"]], token: Sequence[int], modality: ModalityConfig
) -> Pieces:
    """Clean pieces from latents of any shapes; `token` says which tokens of their sample they are."""
    patch, num_elements = packed_patch(modality)
    shapes = np.array([on_axes(latent.shape[1:]) for latent in latents], np.int64).reshape(-1, 3)
    grid = shapes // np.array(patch)
    stride = np.ones(len(grid))
    if modality.squeezed_to:
        stride = np.minimum(1.0, modality.squeezed_to / grid.max(axis=1))
    patches = [to_patches(latent, patch) for latent in latents] or [np.zeros((0, num_elements), np.float32)]
    return Pieces(
        token=np.array(token, dtype=np.int64),
        time=np.ones(len(latents)),
        grid=grid,
        stride=stride,
        patches=patches[0] if len(patches) == 1 else np.concatenate(patches),  # most samples have one: not copied again
        is_given_only=not modality.is_target,
    )


def packed_patch(modality: ModalityConfig) -> tuple[Sides, int]:
    """Sides of a patch as packs hold it, and its elements: of the picture, where an encoder has yet to look at it."""
    if modality.understanding != "live":
        return on_axes(modality.patch), modality.patch_elements
    view, (_, rows, columns) = read_view(modality.codec), modality.grid
    height, width = view.height // rows, view.width // columns
    return (1, height, width), 3 * height * width
