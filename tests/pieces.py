"""Modalities, and pieces of any dimensions with random content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from oneflow_dist.containers import NoisyPieces, PackedBatch, Pieces
from oneflow_dist.modality import ModalityConfig

Grid = tuple[int, int, int]  # patches along time, height and width


def modality(name: str = "image", **keys: Any) -> ModalityConfig:
    """Grey pictures of 2 x 2 patches, but for `keys`."""
    values: dict[str, Any] = {
        "token": f"<|{name}|>",
        "channels": 1,
        "shape": (8, 8),
        "patch": (4, 4),
        "per_pack": 8,
        "codec": "pixels",
        "adapter": "linear",
        "time_conditioning": "added",
        "loss_weight": 1.0,
    }
    return ModalityConfig(**values | keys)


SOUND = modality("sound", channels=4, shape=(6,), patch=(2,), codec="spectrogram@8000")
VIDEO = modality("video", shape=(2, 4, 4), patch=(1, 2, 2), per_pack=4)
VECTOR = modality("vector", channels=5, shape=(), patch=(), codec="latents")
VISION = modality(
    "vision", channels=6, shape=(4, 4), patch=(2, 2), codec="a-siglip", understanding="features", loss_weight=0.0
)


def pieces(
    token: Sequence[int] | np.ndarray,
    grid: Grid | Sequence[Grid] | np.ndarray,
    elements: int = 16,
    time: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    **more: Any,
) -> Pieces:
    """Clean unless `time` says otherwise; `grid` is that of all, or one for each."""
    grids = np.ones((len(token), 3), dtype=np.int64) * np.array(grid, dtype=np.int64).reshape(-1, 3)
    return Pieces(
        token=np.array(token, dtype=np.int64),
        time=np.ones(len(token)) if time is None else np.array(time, dtype=np.float64),
        grid=grids,
        stride=more.pop("stride", np.ones(len(token))),
        patches=np.random.default_rng(seed).standard_normal((grids.prod(axis=1).sum(), elements), dtype=np.float32),
        **more,
    )


def noisy_pieces(token: Sequence[int], grid: Grid | Sequence[Grid], elements: int = 16, seed: int = 0) -> NoisyPieces:
    """All of them moving, at random times."""
    rng = np.random.default_rng(seed)
    noisy = pieces(token, grid, elements, rng.random(len(token)).tolist(), seed)
    velocity = rng.standard_normal(noisy.patches.shape, dtype=np.float32)
    return NoisyPieces(pieces=noisy, velocity=velocity, is_moving=np.ones(len(token), dtype=bool))


def is_same_pack(one: PackedBatch, other: PackedBatch) -> bool:
    """In every tensor and in everything else."""
    plain = [field.name for field in fields(one) if not isinstance(getattr(one, field.name), torch.Tensor | tuple)]
    tensors = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(*pair) for pair in tensors) and all(
        getattr(one, name) == getattr(other, name) for name in [*plain, "keys"]
    )
