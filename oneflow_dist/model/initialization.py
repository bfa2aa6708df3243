"""First values of all parameters: the same on every layout of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from oneflow_dist.model.axis import local_part
from oneflow_dist.model.philox import normal_values

ZERO = (
    "lora.up",
    "modulation.linear.weight",
    "heads.zero.weight",
    "heads.rate.weight",
    "unembed.weight",
    "velocity.last.weight",
    "unet.last.weight",
    "elements_in.last.weight",
    "elements_out.last.weight",
    "patches_in.last.weight",
    "patches_out.last.weight",
)
RESIDUAL = ("attention.out.weight", "mlp.down.weight")


@torch.no_grad()
def initialize(model: nn.Module, seed: int, num_layers: int) -> None:
    """Fill what this rank holds of every parameter with its part of the whole's first values; no rank draws more.

    Norms start at 1, biases and the outputs that must start silent at 0, projections at a standard deviation of
    1 / sqrt(inputs), those that add to the residual stream at 1 / sqrt(2 * layers) of that.
    """
    for name, parameter in model.named_parameters():
        indices = [local_indices(parameter, dim) for dim in range(parameter.ndim)]
        local_part(parameter).copy_(first_value(name, parameter.shape, seed, num_layers, indices))


def local_indices(parameter: Tensor, dim: int) -> Tensor:
    """The indices along a dim of the whole parameter of what this rank holds: [0, 1, ...] cut as the parameter is."""
    indices = torch.arange(parameter.shape[dim], device=parameter.device)
    if not isinstance(parameter, DTensor):
        return indices
    placements = [_along(placement, dim) for placement in parameter.placements]
    return distribute_tensor(indices, parameter.device_mesh, placements, src_data_rank=None).to_local()


def _along(placement: Placement, dim: int) -> Placement:
    """How a mesh axis cuts the list of indices along a dim of a parameter that it cuts by `placement`."""
    if isinstance(placement, _StridedShard) and placement.dim == dim:  # of a dim that tensor ranks had cut before
        return _StridedShard(0, split_factor=placement.split_factor)
    return Shard(0) if isinstance(placement, Shard) and placement.dim == dim else Replicate()


def first_value(name: str, shape: torch.Size, seed: int, num_layers: int, indices: Sequence[Tensor]) -> Tensor:
    """The first value of a parameter, or of a part of it: it depends on the name and the indices alone.

    Args:
        shape: of the whole.
        indices: along each dim, as `normal_values` takes them; the value has their device.
    """
    cut, device = [len(along_dim) for along_dim in indices], indices[0].device
    if "norm" in name:
        return torch.ones(cut, device=device)
    if name.endswith("bias") or name.endswith(ZERO):
        return torch.zeros(cut, device=device)
    std = shape[1] ** -0.5
    if name.endswith(RESIDUAL):
        std *= (2 * num_layers) ** -0.5
    rows, columns = indices
    return normal_values(seed, name, rows, columns) * std


def all_indices(shape: torch.Size) -> list[Tensor]:
    """Along each dim those of a whole parameter, in host memory."""
    return [torch.arange(size) for size in shape]
