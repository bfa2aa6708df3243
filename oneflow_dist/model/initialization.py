"""First values of all parameters: the same on every layout of devices."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

ZERO = (
    "modulation.linear.weight",
    "heads.zero.weight",
    "heads.rate.weight",
    "unembed.weight",
    "adapter.out.weight",
)
RESIDUAL = ("attention.out.weight", "mlp.down.weight")


@torch.no_grad()
def initialize(model: nn.Module, seed: int, num_layers: int) -> None:
    """Fill every parameter, one at a time, from a generator keyed by (seed, name), then cut it as it is sharded.

    Norms start at 1, biases and the outputs that must start silent at 0, projections at a standard deviation of
    1 / sqrt(inputs), those that add to the residual stream at 1 / sqrt(2 * layers) of that.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            device = torch.device(parameter.device_mesh.device_type)  # the values of a shard kept in host memory, too
            value = first_value(name, parameter.shape, seed, num_layers, device)
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
            parameter.to_local().copy_(value)
        else:
            parameter.copy_(first_value(name, parameter.shape, seed, num_layers, parameter.device))


def first_value(name: str, shape: torch.Size, seed: int, num_layers: int, device: torch.device) -> Tensor:
    """The whole first value of one parameter."""
    if "norm" in name:
        return torch.ones(shape, device=device)
    if name.endswith("bias") or name.endswith(ZERO):
        return torch.zeros(shape, device=device)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
    std = shape[1] ** -0.5
    if name.endswith(RESIDUAL):
        std *= (2 * num_layers) ** -0.5
    return torch.randn(shape, generator=generator, device=device) * std
