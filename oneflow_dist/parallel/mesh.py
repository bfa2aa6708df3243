"""The mesh of ranks."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from oneflow_dist.config import ParallelConfig


def mesh_shape(parallel: ParallelConfig, world_size: int) -> tuple[int, int]:
    """Ranks along (replicate, shard).

    Raises:
        ValueError: the axes do not multiply to the number of ranks.
    """
    replicate, shard = parallel.replicate, parallel.shard
    if replicate < 1 or (shard < 1 and shard != -1):
        raise ValueError(f"parallel: replicate ({replicate}) and shard ({shard}) must be positive, or shard = -1")
    if shard == -1:
        shard = max(1, world_size // replicate)
    if replicate * shard != world_size:
        advice = (
            f"set parallel.shard = {world_size // replicate}"
            if world_size % replicate == 0
            else f"set parallel.replicate to a divisor of {world_size}"
        )
        raise ValueError(
            f"parallel: replicate ({replicate}) x shard ({shard}) is {replicate * shard} ranks, "
            f"but WORLD_SIZE is {world_size}; {advice}"
        )
    return replicate, shard


def make_mesh(parallel: ParallelConfig, world_size: int, device_type: str) -> DeviceMesh:
    """The mesh with axes "replicate" and "shard"."""
    return init_device_mesh(device_type, mesh_shape(parallel, world_size), mesh_dim_names=("replicate", "shard"))
