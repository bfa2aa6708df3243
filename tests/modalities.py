"""Kinds of pieces beside images, as overrides of a config, and pieces of any kind with random content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, PackedPieces
from oneflow_dist.data.codec import packed_patch
from oneflow_dist.modality import ModalityConfig
from tests.pieces import pieces


def overrides(name: str, **keys: object) -> tuple[str, ...]:
    """A [modality.NAME] of latents in files with a linear adapter and an added time, but for `keys`."""
    table = {"token": f"<|{name}|>", "per_pack": 16, "codec": "latents", "adapter": "linear"}
    table |= {"time_conditioning": "added", "loss_weight": 1.0}
    return tuple(f"modality.{name}.{key}={value}" for key, value in (table | keys).items())


# Four patches along time; one of two frames and four rows of both, each a patch; what a picture looks like.
SOUND = overrides("sound", channels=2, shape=[12], patch=[3], loss_weight=0.5)
VIDEO = overrides("video", channels=1, shape=[2, 4, 4], patch=[2, 1, 4], loss_weight=2.0)
LOOKS = {"understanding": "features", "loss_weight": 0.0, "adapter": "two_layer", "adapter_width": 12}
VISION = overrides("vision", channels=3, shape=[4, 4], patch=[2, 2], **LOOKS)
UNET = ("modality.image.adapter=unet", "modality.image.adapter_width=8", "modality.image.time_conditioning=adaln")

Grid = tuple[int, int, int]


def noisy_pieces(
    rng: np.random.Generator, modality: ModalityConfig, token: Sequence[int], grid: Sequence[Grid] | None = None
) -> NoisyPieces:
    """Pieces at these tokens, of random content and times; targets are moving. Their grid is the modality's own."""
    grids = np.array([modality.grid] * len(token) if grid is None else grid, dtype=np.int64).reshape(-1, 3)
    count, is_target = len(token), modality.is_target
    num_elements, time = packed_patch(modality)[1], rng.random(count) if is_target else np.ones(count)
    found = pieces(token, grids, num_elements, time, is_given_only=not is_target)
    found = replace(found, patches=rng.standard_normal(found.patches.shape, dtype=np.float32))
    velocity = rng.standard_normal(found.still().shape, dtype=np.float32)
    return NoisyPieces(pieces=found, velocity=velocity, is_moving=np.full(count, is_target))


def packed(grids: Sequence[Grid], num_elements: int, spare: int = 0, seed: int = 0) -> PackedPieces:
    """Pieces of these grids, in float32, and room for `spare` more."""
    grid = torch.tensor([*grids, *[(1, 1, 1)] * spare], dtype=torch.int64).reshape(-1, 3)
    num_patches = [math.prod(sides) for sides in grids]
    total, generator = sum(num_patches), torch.Generator().manual_seed(seed)
    return PackedPieces(
        time=torch.rand(len(grid), generator=generator),
        grid=grid,
        patches=torch.randn(total, num_elements, generator=generator),
        velocity=torch.zeros(total, num_elements),
        sequence=torch.zeros(len(grid), dtype=torch.int64),
        patch_piece=torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(num_patches, dtype=torch.int64)),
        patch_row=torch.arange(total),
        patch_weight=torch.ones(total),
    )


def with_pieces(
    sample: NoisySample, rng: np.random.Generator, kinds: Sequence[tuple[ModalityConfig, Sequence[Grid]]]
) -> NoisySample:
    """The sample with pieces of more modalities at its end, of each as many as grids; slots behind them are open."""
    pieces = list(sample.pieces)
    first = len(sample.tokens)
    for modality, grids in kinds:
        pieces.append(noisy_pieces(rng, modality, range(first, first + len(grids)), grids))
        first += len(grids)
    added = first - len(sample.tokens)
    return replace(
        sample,
        tokens=np.append(sample.tokens, rng.integers(256, size=added)),
        is_given=np.append(sample.is_given, np.zeros(added, dtype=bool)),
        is_open=np.append(sample.is_open, np.ones(added, dtype=bool)),
        bags=Bags.of_tokens(sample.bags.tokens, sample.bags.slot, first),
        pieces=tuple(pieces),
    )
