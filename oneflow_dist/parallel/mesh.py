"""The mesh of ranks: which of them hold copies, which hold parts, which share a pack."""

from __future__ import annotations

import math

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from oneflow_dist.config import RANGES, Config, ParallelConfig
from oneflow_dist.model.tensor_axis import NO_TENSOR_AXIS, TensorAxis
from oneflow_dist.toml import check_range

AXES = ("replicate", "shard", "tensor")
SHARD_TENSOR = "shard_tensor"  # both of them at once


def mesh_shape(parallel: ParallelConfig, world_size: int) -> tuple[int, int, int]:
    """Ranks along (replicate, shard, tensor).

    Raises:
        ValueError: an axis has no ranks, or they do not multiply to the number of ranks.
    """
    for axis in AXES:
        check_range(f"parallel.{axis}", getattr(parallel, axis), RANGES["parallel"][axis])
    replicate, shard, tensor = parallel.replicate, parallel.shard, parallel.tensor
    if shard == -1:
        shard = max(1, world_size // (replicate * tensor))
    size = replicate * shard * tensor
    if size != world_size:
        raise ValueError(
            f"parallel: replicate ({replicate}) x shard ({shard}) x tensor ({tensor}) is {size} ranks, "
            f"but WORLD_SIZE is {world_size}; {_advice(replicate, tensor, world_size)}"
        )
    return replicate, shard, tensor


def dealt_sizes(config: Config) -> dict[str, int]:
    """What the tensor axis deals out: parallel.tensor must divide each of these."""
    model = config.model
    return {
        "model.num_kv_heads": model.num_kv_heads,
        "model.num_attention_heads": model.num_attention_heads,
        "model.mlp_width": model.mlp_width,
        "model.vocab_size": model.vocab_size,
        "data.rows_per_pack": config.data.rows_per_pack,
    }


def can_deal(config: Config) -> bool:
    """Whether the tensor axis can deal out evenly what it deals out."""
    return math.gcd(*dealt_sizes(config).values()) % config.parallel.tensor == 0


def check_tensor_axis(config: Config) -> None:
    """Refuse a tensor axis that cannot deal out evenly what it deals out.

    Raises:
        ValueError: names the first size that parallel.tensor does not divide.
    """
    if can_deal(config):
        return
    tensor, sizes = config.parallel.tensor, dealt_sizes(config)
    name, size = next((name, size) for name, size in sizes.items() if size % tensor)
    largest = math.gcd(tensor, *sizes.values())  # suits all of them, and the number of ranks
    raise ValueError(f"parallel.tensor: {tensor} does not divide {name} ({size}); set parallel.tensor = {largest}")


def make_mesh(config: Config, world_size: int, device_type: str) -> DeviceMesh:
    """The mesh with axes "replicate", "shard" and "tensor"; ranks of a tensor group are neighbours.

    Raises:
        ValueError: the axes do not multiply to the number of ranks, or the tensor axis does not divide the model.
    """
    shape = mesh_shape(config.parallel, world_size)
    check_tensor_axis(config)
    mesh = init_device_mesh(device_type, shape, mesh_dim_names=AXES)
    if config.parallel.tensor > 1:
        _shard_tensor(mesh)  # so that the gradient norm is summed over both at once
    return mesh


def tensor_axis(mesh: DeviceMesh) -> TensorAxis:
    """This rank's place on the tensor axis."""
    axis = mesh["tensor"]
    if axis.size() == 1:
        return NO_TENSOR_AXIS
    return TensorAxis(rank=axis.get_local_rank(), size=axis.size(), group=axis.get_group().group_name)


def data_rank(mesh: DeviceMesh) -> tuple[int, int]:
    """Which of how many parts of the data this rank trains on; the ranks of a tensor group share one."""
    replicate, shard, _ = mesh.get_coordinate()  # type: ignore[misc]
    return replicate * mesh.size(1) + shard, mesh.size(0) * mesh.size(1)


def group_names(mesh: DeviceMesh) -> dict[str, str]:
    """By the names of process groups, the axes that they go along; "all" for a group of all ranks."""
    groups = {"all": dist.distributed_c10d._get_default_group()} | {axis: mesh.get_group(axis) for axis in AXES}
    if mesh["tensor"].size() > 1:
        groups[SHARD_TENSOR] = _shard_tensor(mesh).get_group()
    return {str(group.group_name): axis for axis, group in groups.items()}


def _shard_tensor(mesh: DeviceMesh) -> DeviceMesh:
    """Two axes as one; made once, and the same from then on."""
    return mesh["shard", "tensor"]._flatten(SHARD_TENSOR)


def _advice(replicate: int, tensor: int, world_size: int) -> str:
    if world_size % tensor:
        return f"set parallel.tensor to a divisor of {world_size}"
    if world_size % (replicate * tensor):
        return f"set parallel.replicate to a divisor of {world_size // tensor}"
    return f"set parallel.shard = {world_size // (replicate * tensor)}"
