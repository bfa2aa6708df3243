"""Packs of every kind of sample, and weights of which none is silent, for tests of steps on ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Images, NoisySample, PackedBatch
from oneflow_dist.data.packing import pack
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.parallel.mesh import tensor_axis
from oneflow_dist.parallel.sharding import count_once

KINDS = ("mixed", "text alone", "images alone", "nothing to learn")


def make_samples(kind: str, count: int, config: Config) -> list[NoisySample]:
    """Noisy samples of one kind. "text alone" has no images, "images alone" no bag tokens and no open slots."""
    return [_make_sample(kind, number, config) for number in range(count)]


def _make_sample(kind: str, number: int, config: Config) -> NoisySample:
    rng = np.random.default_rng([KINDS.index(kind), number])
    num_images = {"text alone": 0, "images alone": 2}.get(kind, 1)
    num_bag_tokens = {"images alone": 0, "nothing to learn": 0}.get(kind, 4 + number)
    tokens = rng.integers(256, size=6 + num_images)
    grid = np.array([(1, 3), (2, 2)])[:num_images]
    shape = (grid.prod(axis=1).sum(), config.image.patch_elements)
    return NoisySample(
        key=f"{kind} {number}",
        tokens=tokens,
        is_open=np.full(len(tokens), kind in ("mixed", "text alone")),
        bag_tokens=rng.integers(256, size=num_bag_tokens),
        bag_slot=np.sort(rng.integers(len(tokens), size=num_bag_tokens)),
        images=Images(
            token=np.arange(num_images, dtype=np.int64) * 2 + 1,
            time=rng.random(num_images),
            grid=grid,
            patches=rng.standard_normal(shape, dtype=np.float32),
        ),
        velocity=rng.standard_normal(shape, dtype=np.float32),
        is_moving=np.full(num_images, kind != "nothing to learn"),
        text_time=float(rng.random()),
    )


def make_packs(parts: list[list[NoisySample]], config: Config, mesh: DeviceMesh) -> list[PackedBatch]:
    """A pack of each part, as this rank of a tensor group answers for it."""
    return [count_once(pack(part, capacity_of(config), config.flow.normalize), tensor_axis(mesh)) for part in parts]


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """The same on all layouts; without it the heads are silent, and some parameters have no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter += noise
