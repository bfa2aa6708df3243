from __future__ import annotations

import pytest
import torch.distributed as dist

from oneflow_dist.config import ParallelConfig
from oneflow_dist.parallel.mesh import make_mesh, mesh_shape
from tests.launching import Launcher


@pytest.mark.parametrize(
    ("replicate", "shard", "world_size", "expected"),
    [
        (1, -1, 1, (1, 1)),
        (1, -1, 8, (1, 8)),
        (2, -1, 8, (2, 4)),
        (8, -1, 8, (8, 1)),
        (2, 4, 8, (2, 4)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_the_mesh_is_replicate_by_shard(replicate: int, shard: int, world_size: int, expected: tuple[int, int]) -> None:
    assert mesh_shape(ParallelConfig(replicate=replicate, shard=shard), world_size) == expected


@pytest.mark.parametrize(
    ("replicate", "shard", "world_size", "message"),
    [
        (2, 2, 8, "replicate (2) x shard (2) is 4 ranks, but WORLD_SIZE is 8; set parallel.shard = 4"),
        (
            3,
            2,
            8,
            "replicate (3) x shard (2) is 6 ranks, but WORLD_SIZE is 8; set parallel.replicate to a divisor of 8",
        ),
        (
            3,
            -1,
            8,
            "replicate (3) x shard (2) is 6 ranks, but WORLD_SIZE is 8; set parallel.replicate to a divisor of 8",
        ),
        (
            4,
            -1,
            2,
            "replicate (4) x shard (1) is 4 ranks, but WORLD_SIZE is 2; set parallel.replicate to a divisor of 2",
        ),
        (0, -1, 8, "replicate (0) and shard (-1) must be positive, or shard = -1"),
        (1, 0, 8, "replicate (1) and shard (0) must be positive, or shard = -1"),
        (1, -2, 8, "replicate (1) and shard (-2) must be positive, or shard = -1"),
    ],
)
def test_a_mesh_that_is_not_all_ranks_is_refused(replicate: int, shard: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        mesh_shape(ParallelConfig(replicate=replicate, shard=shard), world_size)
    assert str(error.value) == f"parallel: {message}"


def places_in_mesh() -> tuple[tuple[str, ...] | None, dict[str, int], list[list[int]]]:
    mesh = make_mesh(ParallelConfig(replicate=2), dist.get_world_size(), "cpu")
    axes = mesh.mesh_dim_names or ()
    return mesh.mesh_dim_names, {axis: mesh.get_local_rank(axis) for axis in axes}, mesh.mesh.tolist()


def test_neighbouring_ranks_share_a_shard_group(launcher: Launcher) -> None:
    found = launcher.call(4, places_in_mesh)
    assert {axes for axes, _, _ in found} == {("replicate", "shard")}
    assert [(place["replicate"], place["shard"]) for _, place, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(ranks == [[0, 1], [2, 3]] for _, _, ranks in found)
