"""The mesh of ranks: which of them hold copies, which hold parts, which share a pack."""

from __future__ import annotations

import dataclasses
import math

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from oneflow_dist.config import RANGES, Config, ParallelConfig
from oneflow_dist.model.axis import ALONE, Axis
from oneflow_dist.toml import check_range

AXES = ("replicate", "shard", "context", "tensor")  # as [parallel] has them
AXES_OF_WEIGHTS = ("replicate", "shard", "tensor")  # of the mesh: weights are sharded over shard x context
SHARD_TENSOR = "shard_tensor"  # both of them at once


def mesh_shape(parallel: ParallelConfig, world_size: int) -> tuple[int, int, int, int]:
    """Ranks along AXES.

    Raises:
        ValueError: an axis has no ranks, or they do not multiply to the number of ranks.
    """
    for axis in AXES:
        check_range(f"parallel.{axis}", getattr(parallel, axis), RANGES["parallel"][axis])
    replicate, shard, context, tensor = (getattr(parallel, axis) for axis in AXES)
    if shard == -1:
        shard = max(1, world_size // (replicate * context * tensor))
    shape = replicate, shard, context, tensor
    if math.prod(shape) != world_size:
        named = " x ".join(f"{axis} ({size})" for axis, size in zip(AXES, shape, strict=True))
        raise ValueError(
            f"parallel: {named} is {math.prod(shape)} ranks, but WORLD_SIZE is {world_size}; "
            f"{_advice(parallel, world_size)}"
        )
    return shape


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
    """Whether the tensor and the context axis can deal out evenly what they deal out."""
    tensor, context = config.parallel.tensor, config.parallel.context
    if math.gcd(*dealt_sizes(config).values()) % tensor or config.data.rows_per_pack % (tensor * context):
        return False
    key_heads, group = (
        config.model.num_kv_heads // tensor,
        config.model.num_attention_heads // config.model.num_kv_heads,
    )
    return key_heads % context == 0 or (context % key_heads == 0 and group % (context // key_heads) == 0)


def check_axes(config: Config) -> None:
    """Refuse a tensor or context axis that cannot deal out evenly what it deals out.

    Raises:
        ValueError: names the first size that does not suit, and a size of the axis that does.
    """
    if can_deal(config):
        return
    parallel, model = config.parallel, config.model
    sizes, tensor = dealt_sizes(config), parallel.tensor
    if unsuited := [name for name, size in sizes.items() if size % tensor]:
        largest = math.gcd(tensor, *sizes.values())  # suits all of them, and the number of ranks
        raise ValueError(
            f"parallel.tensor: {tensor} does not divide {unsuited[0]} ({sizes[unsuited[0]]}); "
            f"set parallel.tensor = {largest}"
        )
    smaller = range(parallel.context - 1, 0, -1)
    largest = next(
        size
        for size in smaller
        if parallel.context % size == 0
        and can_deal(dataclasses.replace(config, parallel=dataclasses.replace(parallel, context=size)))
    )
    raise ValueError(
        f"parallel.context: {parallel.context} x parallel.tensor ({tensor}) does not deal out data.rows_per_pack "
        f"({config.data.rows_per_pack}), or the {model.num_attention_heads} heads of attention on {model.num_kv_heads} "
        f"key heads; set parallel.context = {largest}"
    )


def make_mesh(config: Config, world_size: int, device_type: str) -> DeviceMesh:
    """The mesh with AXES_OF_WEIGHTS; ranks of a tensor group are neighbours, and so are those of a context group.

    Raises:
        ValueError: the axes do not multiply to the number of ranks, or do not suit the model.
    """
    replicate, shard, context, tensor = mesh_shape(config.parallel, world_size)
    check_axes(config)
    mesh = init_device_mesh(device_type, (replicate, shard * context, tensor), mesh_dim_names=AXES_OF_WEIGHTS)
    if config.parallel.tensor > 1:
        _shard_tensor(mesh)  # so that the gradient norm is summed over both at once
    return mesh


def tensor_axis(mesh: DeviceMesh) -> Axis:
    """This rank's place on the tensor axis."""
    return _place_on(mesh["tensor"])


def context_axis(mesh: DeviceMesh, size: int) -> Axis:
    """This rank's place on the context axis of so many ranks: neighbours on "shard". All ranks call together."""
    if size == 1:  # no groups are made
        return ALONE
    return _place_on(mesh["shard"]._unflatten(0, (mesh.size(1) // size, size), ("data", "context"))["context"])


def _place_on(axis: DeviceMesh) -> Axis:
    if axis.size() == 1:
        return ALONE
    return Axis(rank=axis.get_local_rank(), size=axis.size(), group=axis.get_group().group_name)


def data_rank(mesh: DeviceMesh, context: int) -> tuple[int, int]:
    """Which of how many parts of the data this rank trains on; ranks of a context or tensor group share one."""
    replicate, shard, _ = mesh.get_coordinate()  # type: ignore[misc]
    return (replicate * mesh.size(1) + shard) // context, mesh.size(0) * mesh.size(1) // context


def group_names(mesh: DeviceMesh, context: Axis) -> dict[str, str]:
    """By the names of process groups, the axes that they go along; "all" for a group of all ranks."""
    groups = {"all": dist.distributed_c10d._get_default_group()}
    groups |= {axis: mesh.get_group(axis) for axis in AXES_OF_WEIGHTS}
    if mesh["tensor"].size() > 1:
        groups[SHARD_TENSOR] = _shard_tensor(mesh).get_group()
    of_context = {context.group: "context"} if context.size > 1 else {}
    return of_context | {str(group.group_name): axis for axis, group in groups.items()}


def _shard_tensor(mesh: DeviceMesh) -> DeviceMesh:
    """Two axes as one; made once, and the same from then on."""
    return mesh["shard", "tensor"]._flatten(SHARD_TENSOR)


def _advice(parallel: ParallelConfig, world_size: int) -> str:
    """Keep as much of the axes that lie in a node as divides the ranks; what is left goes to the others."""
    left = world_size
    for axis in ("tensor", "context", "replicate"):
        if left % getattr(parallel, axis):
            return f"set parallel.{axis} to a divisor of {left}"
        left //= getattr(parallel, axis)
    return f"set parallel.shard = {left}"
