from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from oneflow_dist.config import Config, ParallelConfig, load_config, write_config
from oneflow_dist.model.tensor_axis import NO_TENSOR_AXIS
from oneflow_dist.parallel.mesh import check_tensor_axis, data_rank, make_mesh, mesh_shape, tensor_axis
from tests.launching import Launcher
from tests.messages import names, naming


@pytest.mark.parametrize(
    ("axes", "world_size", "expected"),
    [
        ((1, -1, 1), 1, (1, 1, 1)),
        ((1, 1, 1), 1, (1, 1, 1)),
        ((1, -1, 1), 8, (1, 8, 1)),
        ((2, -1, 1), 8, (2, 4, 1)),
        ((8, -1, 1), 8, (8, 1, 1)),
        ((2, 4, 1), 8, (2, 4, 1)),
        ((1, -1, 4), 8, (1, 2, 4)),
        ((1, 1, 8), 8, (1, 1, 8)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((2, 3, 4), 24, (2, 3, 4)),
    ],
)
def test_the_mesh_is_replicate_by_shard_by_tensor(
    axes: tuple[int, int, int], world_size: int, expected: tuple[int, int, int]
) -> None:
    replicate, shard, tensor = axes
    assert mesh_shape(ParallelConfig(replicate=replicate, shard=shard, tensor=tensor), world_size) == expected


@pytest.mark.parametrize(
    ("axes", "world_size", "shape", "advice"),
    [
        ((2, 2, 1), 8, (2, 2, 1), ("parallel.shard", 4)),
        ((1, 4, 4), 8, (1, 4, 4), ("parallel.shard", 2)),
        ((3, 2, 1), 8, (3, 2, 1), ("parallel.replicate", 8)),
        ((3, -1, 1), 8, (3, 2, 1), ("parallel.replicate", 8)),
        ((4, -1, 1), 2, (4, 1, 1), ("parallel.replicate", 2)),
        ((4, -1, 4), 8, (4, 1, 4), ("parallel.replicate", 2)),
        ((1, -1, 3), 8, (1, 2, 3), ("parallel.tensor", 8)),
        ((1, -1, 8), 4, (1, 1, 8), ("parallel.tensor", 4)),
    ],
)
def test_a_mesh_that_is_not_all_ranks_is_refused(
    axes: tuple[int, int, int], world_size: int, shape: tuple[int, int, int], advice: tuple[str, int]
) -> None:
    replicate, shard, tensor = axes
    sizes = [part for axis in zip(("replicate", "shard", "tensor"), shape, strict=True) for part in axis]
    with pytest.raises(
        ValueError, match=naming("parallel", *sizes, math.prod(shape), "WORLD_SIZE", world_size, *advice)
    ):
        mesh_shape(ParallelConfig(replicate=replicate, shard=shard, tensor=tensor), world_size)


@pytest.mark.parametrize("axes", [(0, -1, 1), (-1, 8, 1), (1, 0, 1), (1, -2, 1), (1, -1, 0), (1, 8, -1)])
def test_an_axis_without_ranks_is_refused(axes: tuple[int, int, int]) -> None:
    replicate, shard, tensor = axes
    with pytest.raises(ValueError, match=r"^parallel\.(replicate|shard|tensor): -?\d "):
        mesh_shape(ParallelConfig(replicate=replicate, shard=shard, tensor=tensor), 8)


FITS_8 = (
    *("model.width=64", "model.num_attention_heads=16", "model.num_kv_heads=8", "model.mlp_width=96"),
    *("model.vocab_size=512", "data.rows_per_pack=2048"),
)


@pytest.mark.parametrize(
    ("tensor", "overrides", "key", "size", "advised"),
    [
        (8, ("model.num_kv_heads=4",), "model.num_kv_heads", 4, 4),
        (8, ("model.num_kv_heads=1",), "model.num_kv_heads", 1, 1),
        (6, ("model.width=48", "model.num_attention_heads=8", "model.num_kv_heads=4"), "model.num_kv_heads", 4, 2),
        (8, ("model.mlp_width=100",), "model.mlp_width", 100, 4),
        (8, ("model.vocab_size=511",), "model.vocab_size", 511, 1),
        (8, ("data.rows_per_pack=2044",), "data.rows_per_pack", 2044, 4),
        # What one size asks for has to suit the others too.
        (8, ("model.num_kv_heads=4", "model.vocab_size=510"), "model.num_kv_heads", 4, 2),
    ],
)
def test_a_tensor_axis_that_does_not_divide_the_model_is_refused_with_one_that_does(
    make_config: Callable[..., Config], tensor: int, overrides: tuple[str, ...], key: str, size: int, advised: int
) -> None:
    config = make_config(*FITS_8, *overrides, f"parallel.tensor={tensor}")
    with pytest.raises(ValueError, match=naming("parallel.tensor", tensor, key, size, f"parallel.tensor = {advised}")):
        check_tensor_axis(config)
    check_tensor_axis(make_config(*FITS_8, *overrides, f"parallel.tensor={advised}"))


def test_a_tensor_axis_that_divides_all_sizes_is_taken(make_config: Callable[..., Config]) -> None:
    for tensor in (1, 2, 4, 8):
        check_tensor_axis(make_config(*FITS_8, f"parallel.tensor={tensor}"))


def test_ranks_that_cannot_share_the_heads_end_together_and_say_why(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    ends = launcher.run_ranks(4, *train_command(tmp_path / "run", "parallel.tensor=4"))
    for end, rank in zip(ends, ("", " (rank 1)", " (rank 2)", " (rank 3)"), strict=True):
        assert names(end.stderr, f"error{rank}: parallel.tensor", 4, "model.num_kv_heads", 2, "parallel.tensor = 2")
    assert [end.code for end in ends] == [2] * 4
    assert not (tmp_path / "run").exists()


def places_in_mesh(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """What a rank is told of its place; the sum over its tensor group says with whom it computes."""
    mesh = make_mesh(load_config(config_path, overrides), dist.get_world_size(), "cpu")
    axis = tensor_axis(mesh)
    members = [0] * axis.size
    if axis.size > 1:
        dist.all_gather_object(members, dist.get_rank(), group=dist.distributed_c10d._resolve_process_group(axis.group))
    return {
        "axes": mesh.mesh_dim_names,
        "ranks": mesh.mesh.tolist(),
        "data": data_rank(mesh),
        "tensor": (axis.rank, axis.size),
        "is_alone": axis == NO_TENSOR_AXIS,
        "members": members,
    }


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mesh") / "config.toml"
    path.write_text(write_config(make_config()))
    return str(path)


def test_neighbouring_ranks_share_a_tensor_group_and_its_data(launcher: Launcher, config_path: str) -> None:
    found = launcher.call(4, places_in_mesh, config_path, ["parallel.tensor=2"])
    assert all(rank["axes"] == ("replicate", "shard", "tensor") for rank in found)
    assert all(rank["ranks"] == [[[0, 1], [2, 3]]] for rank in found)
    assert [rank["tensor"] for rank in found] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert [rank["members"] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["data"] for rank in found] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_every_rank_without_a_tensor_group_has_its_own_data(launcher: Launcher, config_path: str) -> None:
    found = launcher.call(4, places_in_mesh, config_path, ["parallel.replicate=2"])
    assert all(rank["ranks"] == [[[0], [1]], [[2], [3]]] for rank in found)  # neighbours share a shard group
    assert all(rank["is_alone"] for rank in found)
    assert [rank["data"] for rank in found] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_replicas_of_tensor_groups_share_the_data_out(launcher: Launcher, config_path: str) -> None:
    found = launcher.call(4, places_in_mesh, config_path, ["parallel.replicate=2", "parallel.tensor=2"])
    assert all(rank["ranks"] == [[[0, 1]], [[2, 3]]] for rank in found)
    assert [rank["members"] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["data"] for rank in found] == [(0, 2), (0, 2), (1, 2), (1, 2)]
