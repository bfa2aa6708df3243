from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from oneflow_dist.model.axis import ALONE, Axis, local_part
from tests.launching import Launcher

SHAPES = ((), (3,), (2, 3))  # of a row


@given(st.integers(0, 100), st.integers(1, 9))
def test_every_thing_is_one_ranks_own_and_none_has_two_more_than_another(count: int, size: int) -> None:
    parts = [range(count)[Axis(rank=rank, size=size).local_slice(count)] for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_an_axis_all_is_local_and_nothing_is_exchanged() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert (ALONE.rank, ALONE.size) == (0, 1)
    assert range(7)[ALONE.local_slice(7)] == range(7)
    assert ALONE.gather(x) is x
    assert ALONE.scatter_sum(x) is x
    assert ALONE.deal_rows(x) is x
    assert ALONE.deal_columns(x) is x
    assert local_part(x) is x


def values(seed: int, *shape: int) -> Tensor:
    """Small whole numbers, whose sums are exact."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).double()


def exchanged(shape: tuple[int, ...], num_rows: int) -> dict[str, Tensor]:
    """Both exchanges and their gradients, on this rank, of values seeded by ranks."""
    rank, size = dist.get_rank(), dist.get_world_size()
    axis = Axis(rank=rank, size=size, group=dist.group.WORLD.group_name)
    own = values(rank, num_rows, *shape).requires_grad_()
    gathered = axis.gather(own)
    gathered.backward(values(10 + rank, size * num_rows, *shape))
    whole = values(20 + rank, size * num_rows, *shape).requires_grad_()
    summed = axis.scatter_sum(whole)
    summed.backward(values(30 + rank, num_rows, *shape))
    turned = axis.gather(values(rank, *shape[::-1], num_rows).permute(*range(len(shape), -1, -1)))
    return {
        "gathered": gathered.detach(),
        "gathered gradient": own.grad,
        "summed": summed.detach(),
        "summed gradient": whole.grad,
        "gathered from another layout": turned,
    }


def exchange_all(num_rows: int) -> list[dict[str, Tensor]]:
    return [exchanged(shape, num_rows) for shape in SHAPES]


@pytest.mark.parametrize("size", [2, 4])
def test_gather_and_scatter_sum_are_concatenation_and_sum_and_each_others_gradient(
    launcher: Launcher, size: int
) -> None:
    ranks, rows = launcher.call(size, exchange_all, 3), 3
    for number, shape in enumerate(SHAPES):
        whole = torch.cat([values(rank, rows, *shape) for rank in range(size)])
        whole_gradient = sum(values(10 + rank, size * rows, *shape) for rank in range(size))
        total = sum(values(20 + rank, size * rows, *shape) for rank in range(size))
        total_gradient = torch.cat([values(30 + rank, rows, *shape) for rank in range(size)])
        turned = [
            values(rank, *shape[::-1], rows).permute(*range(len(shape), -1, -1)).contiguous() for rank in range(size)
        ]
        for rank, found in enumerate(results[number] for results in ranks):
            own = slice(rank * rows, (rank + 1) * rows)
            expected = {
                "gathered": whole,
                "gathered gradient": whole_gradient[own],
                "summed": total[own],
                "summed gradient": total_gradient,
                "gathered from another layout": torch.cat(turned),
            }
            assert found.keys() == expected.keys()
            for name, value in found.items():
                assert torch.equal(value, expected[name]), f"{name} on rank {rank}, row {shape}"


def dealt(shape: tuple[int, ...]) -> list[Tensor]:
    """Rows of all columns, columns of all rows, and the gradient of both."""
    rank, size = dist.get_rank(), dist.get_world_size()
    axis = Axis(rank=rank, size=size, group=dist.group.WORLD.group_name)
    columns = values(1, 12, 8, *shape).chunk(size, dim=1)[rank].requires_grad_()
    rows = values(1, 12, 8, *shape).chunk(size, dim=0)[rank].requires_grad_()
    as_rows, as_columns = axis.deal_rows(columns), axis.deal_columns(rows)
    as_rows.backward(values(2, 12, 8, *shape).chunk(size, dim=0)[rank])
    as_columns.backward(values(3, 12, 8, *shape).chunk(size, dim=1)[rank])
    assert columns.grad is not None
    assert rows.grad is not None
    return [as_rows.detach(), columns.grad, as_columns.detach(), rows.grad]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_change_rows_of_all_columns_for_columns_of_all_rows_and_back(
    launcher: Launcher, size: int, shape: tuple[int, ...]
) -> None:
    as_rows, columns_gradient, as_columns, rows_gradient = zip(*launcher.call(size, dealt, shape), strict=True)
    assert torch.equal(torch.cat(as_rows), values(1, 12, 8, *shape))
    assert torch.equal(torch.cat(as_columns, dim=1), values(1, 12, 8, *shape))
    assert torch.equal(torch.cat(columns_gradient, dim=1), values(2, 12, 8, *shape))
    assert torch.equal(torch.cat(rows_gradient), values(3, 12, 8, *shape))


def products_of_cut_weights() -> dict[str, Any]:
    """Rows dealt out -> scale by a whole weight -> gather -> columns -> rows -> scatter_sum, as in a block."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    axis = Axis(rank=rank, size=size, group=mesh.get_group().group_name)
    whole = {"scale": values(1, 3), "up": values(2, 4, 3), "down": values(3, 3, 4)}
    cuts = {"scale": Replicate(), "up": Shard(0), "down": Shard(1)}
    weights = {n: nn.Parameter(distribute_tensor(w, mesh, [cuts[n]], src_data_rank=None)) for n, w in whole.items()}
    parts = {name: local_part(weight) for name, weight in weights.items()}
    rows = values(4, 8, 3)[axis.local_slice(8)] * parts["scale"]
    out = axis.scatter_sum(axis.gather(rows) @ parts["up"].T @ parts["down"].T)
    out.backward(values(5, 8, 3)[axis.local_slice(8)])
    grads = {name: weight.grad for name, weight in weights.items()}
    assert all(isinstance(grad, DTensor) for grad in grads.values())
    return {
        "out": out.detach(),
        "shapes": {name: tuple(part.shape) for name, part in parts.items()},
        "is plain": all(type(part.detach()) is Tensor for part in parts.values()),
        "placements": {name: repr(grad.placements) for name, grad in grads.items()},
        "gradients": {name: grad.full_tensor() for name, grad in grads.items()},
    }


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_cut_weights_are_cut_alike_and_those_of_whole_weights_are_parts_of_a_sum(
    launcher: Launcher, size: int
) -> None:
    scale, up, down = (values(*sizes).requires_grad_() for sizes in ((1, 3), (2, 4, 3), (3, 3, 4)))
    expected = (values(4, 8, 3) * scale) @ up.T @ down.T
    gradients = torch.autograd.grad(expected, (scale, up, down), values(5, 8, 3))

    ranks = launcher.call(size, products_of_cut_weights)
    assert torch.equal(torch.cat([found["out"] for found in ranks]), expected)
    for found in ranks:
        assert found["is plain"]
        assert found["shapes"] == {"scale": (3,), "up": (4 // size, 3), "down": (3, 4 // size)}
        assert found["placements"] == {
            "scale": "(Partial(sum),)",
            "up": "(Shard(dim=0),)",
            "down": "(Shard(dim=1),)",
        }
        for name, gradient in zip(("scale", "up", "down"), gradients, strict=True):
            assert torch.equal(found["gradients"][name], gradient), name
