"""Packs of every kind of sample, and weights of which none is silent, for tests of steps on ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, NoisySample, PackedBatch
from oneflow_dist.data.packing import pack
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.dealing import deal_pack
from tests.modalities import Grid, noisy_pieces

KINDS = ("mixed", "text alone", "images alone", "nothing to learn")
SOUNDS_ALONE = "sounds alone"  # of a config that has them
GRIDS: dict[str, list[Grid]] = {  # of the pieces of a sample, by modality
    "image": [(1, 1, 3), (1, 2, 2)],
    "sound": [(3, 1, 1), (5, 1, 1)],
    "vision": [(1, 2, 1)],
}
COUNTS = {  # how many of them a sample of each kind has
    "mixed": {"image": 1, "sound": 1, "vision": 1},
    "text alone": {},
    "images alone": {"image": 2, "vision": 1},
    "nothing to learn": {"image": 1, "sound": 1, "vision": 1},
    SOUNDS_ALONE: {"sound": 2},
}


def make_samples(kind: str, count: int, config: Config) -> list[NoisySample]:
    """Noisy samples of one kind, with pieces of those modalities that the config has.

    "text alone" has none; where only pieces move there are no bag tokens and no open slots.
    """
    return [_make_sample(kind, number, config) for number in range(count)]


def _make_sample(kind: str, number: int, config: Config) -> NoisySample:
    rng = np.random.default_rng([list(COUNTS).index(kind), number])
    has_text = kind in ("mixed", "text alone")
    counts = [COUNTS[kind].get(name, 0) for name in config.modality]
    tokens = rng.integers(256, size=6 + sum(counts))
    num_bag_tokens = 4 + number if has_text else 0
    bag_tokens = rng.integers(256, size=num_bag_tokens)
    bag_slot = np.sort(rng.integers(len(tokens), size=num_bag_tokens))
    pieces, first = [], 1
    for (name, modality), count in zip(config.modality.items(), counts, strict=True):
        noisy = noisy_pieces(rng, modality, range(first, first + 2 * count, 2), GRIDS[name][:count])
        pieces.append(replace(noisy, is_moving=noisy.is_moving & (kind != "nothing to learn")))
        first += 2 * count
    return NoisySample(
        key=f"{kind} {number}",
        tokens=tokens,
        is_given=np.arange(len(tokens)) == 0,
        is_open=np.full(len(tokens), has_text),
        bags=Bags.of_tokens(bag_tokens, bag_slot, len(tokens)),
        pieces=tuple(pieces),
        text_time=float(rng.random()),
        block_ends=(2, 4) if number % 2 else (5,),
    )


def make_packs(parts: list[list[NoisySample]], config: Config, model: OneFlow) -> list[PackedBatch]:
    """A pack of each part, as this rank answers for it."""
    how = config.flow.normalize, config.sees
    return [deal_pack(pack(part, capacity_of(config), *how), model) for part in parts]


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """The same on all layouts; without it the heads are silent, and some parameters have no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter += noise
