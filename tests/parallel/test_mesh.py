from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from oneflow_dist.config import Config, ParallelConfig, load_config, write_config
from oneflow_dist.model.axis import ALONE, Axis
from oneflow_dist.parallel.mesh import AXES, check_axes, context_axis, data_rank, make_mesh, mesh_shape, tensor_axis
from tests.launching import Launcher
from tests.messages import names, naming

Axes = tuple[int, int, int, int]


def parallel(axes: Axes) -> ParallelConfig:
    return ParallelConfig(**dict(zip(AXES, axes, strict=True)))


@pytest.mark.parametrize(
    ("axes", "world_size", "expected"),
    [
        ((1, -1, 1, 1), 1, (1, 1, 1, 1)),
        ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
        ((1, -1, 1, 1), 8, (1, 8, 1, 1)),
        ((2, -1, 1, 1), 8, (2, 4, 1, 1)),
        ((8, -1, 1, 1), 8, (8, 1, 1, 1)),
        ((2, 4, 1, 1), 8, (2, 4, 1, 1)),
        ((1, -1, 1, 4), 8, (1, 2, 1, 4)),
        ((1, 1, 1, 8), 8, (1, 1, 1, 8)),
        ((2, -1, 1, 2), 8, (2, 2, 1, 2)),
        ((2, 3, 1, 4), 24, (2, 3, 1, 4)),
        ((1, -1, 4, 1), 8, (1, 2, 4, 1)),
        ((2, -1, 2, 2), 16, (2, 2, 2, 2)),
        ((1, 1, 8, 1), 8, (1, 1, 8, 1)),
    ],
)
def test_the_mesh_is_replicate_by_shard_by_context_by_tensor(axes: Axes, world_size: int, expected: Axes) -> None:
    assert mesh_shape(parallel(axes), world_size) == expected


@pytest.mark.parametrize(
    ("axes", "world_size", "shape", "advice"),
    [
        ((2, 2, 1, 1), 8, (2, 2, 1, 1), ("parallel.shard", 4)),
        ((1, 4, 1, 4), 8, (1, 4, 1, 4), ("parallel.shard", 2)),
        ((3, 2, 1, 1), 8, (3, 2, 1, 1), ("parallel.replicate", 8)),
        ((3, -1, 1, 1), 8, (3, 2, 1, 1), ("parallel.replicate", 8)),
        ((4, -1, 1, 1), 2, (4, 1, 1, 1), ("parallel.replicate", 2)),
        ((4, -1, 1, 4), 8, (4, 1, 1, 4), ("parallel.replicate", 2)),
        ((1, -1, 1, 3), 8, (1, 2, 1, 3), ("parallel.tensor", 8)),
        ((1, -1, 1, 8), 4, (1, 1, 1, 8), ("parallel.tensor", 4)),
        ((1, -1, 3, 2), 8, (1, 1, 3, 2), ("parallel.context", 4)),
        ((1, 1, 2, 2), 8, (1, 1, 2, 2), ("parallel.shard", 2)),
    ],
)
def test_a_mesh_that_is_not_all_ranks_is_refused(
    axes: Axes, world_size: int, shape: Axes, advice: tuple[str, int]
) -> None:
    sizes = [part for axis in zip(AXES, shape, strict=True) for part in axis]
    with pytest.raises(
        ValueError, match=naming("parallel", *sizes, math.prod(shape), "WORLD_SIZE", world_size, *advice)
    ):
        mesh_shape(parallel(axes), world_size)


@pytest.mark.parametrize(
    "axes", [(0, -1, 1, 1), (-1, 8, 1, 1), (1, 0, 1, 1), (1, -2, 1, 1), (1, -1, 1, 0), (1, 8, 0, 1)]
)
def test_an_axis_without_ranks_is_refused(axes: Axes) -> None:
    with pytest.raises(ValueError, match=r"^parallel\.(replicate|shard|context|tensor): -?\d "):
        mesh_shape(parallel(axes), 8)


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
        check_axes(config)
    check_axes(make_config(*FITS_8, *overrides, f"parallel.tensor={advised}"))


@pytest.mark.parametrize(
    ("axes", "overrides", "advised"),
    [
        ({"context": 3}, (), 1),
        ({"context": 32}, (), 16),  # more than there are heads
        ({"context": 8, "tensor": 4}, (), 4),  # two key heads on a tensor rank, each read by two query heads
        ({"context": 4}, ("data.rows_per_pack=2046",), 2),
        ({"context": 6}, ("data.rows_per_pack=2046", "model.num_attention_heads=8", "model.width=48"), 2),
    ],
)
def test_a_context_axis_that_cannot_deal_out_rows_or_heads_is_refused_with_one_that_can(
    make_config: Callable[..., Config], axes: dict[str, int], overrides: tuple[str, ...], advised: int
) -> None:
    own = [f"parallel.{axis}={size}" for axis, size in axes.items()]
    config = make_config(*FITS_8, *overrides, *own)
    with pytest.raises(ValueError, match=naming("parallel.context", axes["context"], f"parallel.context = {advised}")):
        check_axes(config)
    check_axes(make_config(*FITS_8, *overrides, *own, f"parallel.context={advised}"))


def test_a_tensor_axis_that_divides_all_sizes_is_taken(make_config: Callable[..., Config]) -> None:
    for tensor in (1, 2, 4, 8):
        check_axes(make_config(*FITS_8, f"parallel.tensor={tensor}"))


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
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    axis = tensor_axis(mesh)
    context = context_axis(mesh, config.parallel.context)

    def members(axis: Axis) -> list[int]:
        ranks = [0] * axis.size
        if axis.size > 1:
            group = dist.distributed_c10d._resolve_process_group(axis.group)
            dist.all_gather_object(ranks, dist.get_rank(), group=group)
        return ranks

    return {
        "axes": mesh.mesh_dim_names,
        "ranks": mesh.mesh.tolist(),
        "data": data_rank(mesh, config.parallel.context),
        "context": (context.rank, context.size),
        "context members": members(context),
        "tensor": (axis.rank, axis.size),
        "is_alone": axis == ALONE,
        "members": members(axis),
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


def test_neighbours_share_a_pack_and_all_of_them_the_weights(launcher: Launcher, config_path: str) -> None:
    found = launcher.call(4, places_in_mesh, config_path, ["parallel.context=2"])
    assert all(rank["ranks"] == [[[0], [1], [2], [3]]] for rank in found)
    assert [rank["context"] for rank in found] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert [rank["context members"] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["data"] for rank in found] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_a_context_group_goes_along_tensor_groups(launcher: Launcher, config_path: str) -> None:
    found = launcher.call(4, places_in_mesh, config_path, ["parallel.context=2", "parallel.tensor=2"])
    assert all(rank["ranks"] == [[[0, 1], [2, 3]]] for rank in found)
    assert [rank["members"] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["context members"] for rank in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [rank["data"] for rank in found] == [(0, 1)] * 4


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
