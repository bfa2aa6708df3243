"""What ranks that share a pack do together: they deal out its rows, and the width of weights or the heads."""

# Shapes: T rows of all ranks of an axis, t = T / size rows of one; V columns, v = V / size of one.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """This rank's place among those that compute one pack together; rank r holds rows [r T / size, (r + 1) T / size).

    "tensor": a product takes all rows and a part of its weight: columns after `gather`, then rows before `scatter_sum`.
    What is computed by all ranks alike counts once in the loss (see `deal_pack`).

    "context": a product takes the rows of this rank and all of its weight. Attention takes all rows and a part of the
    heads, between `deal_columns` and `deal_rows`: exact for documents of any lengths and for every rule of who sees
    whom, and as much work on every rank. A rank knows the tokens, bags and patches of its own rows alone.

    Either way the gradients of the ranks for a weight that is not cut are parts of a sum, as with data parallelism, and
    no activation has to be summed but by `scatter_sum`.

    Source: arXiv:1909.08053 (columns, then rows), arXiv:2205.05198 (rows dealt out between them), arXiv:2309.14509
    (rows, then heads).
    """

    rank: int = 0
    size: int = 1
    group: str = ""  # name of the process group

    def local_slice(self, count: int) -> slice:
        """This rank's part of `count` things."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x: Shaped[Tensor, "t *rest"]) -> Shaped[Tensor, "T *rest"]:
        """The rows of all ranks. Backward, each rank gets the sum of all ranks' gradients of its rows."""
        return x if self.size == 1 else _Exchange.apply(x, self, _gather, _scatter_sum)

    def scatter_sum(self, x: Shaped[Tensor, "T *rest"]) -> Shaped[Tensor, "t *rest"]:
        """This rank's rows of the sum over ranks. Backward, each rank gets the gradients of all rows."""
        return x if self.size == 1 else _Exchange.apply(x, self, _scatter_sum, _gather)

    def own_rows(self, x: Shaped[Tensor, "m D"], row: Int64[Tensor, "m"], num_rows: int) -> Shaped[Tensor, "m D"]:
        """What every rank has and one brings into a `scatter_sum` of `num_rows` rows: who holds row `row[i]`."""
        return x if self.size == 1 else x * (row * self.size // num_rows == self.rank)[:, None]

    def deal_rows(self, x: Shaped[Tensor, "T v *rest"]) -> Shaped[Tensor, "t V *rest"]:
        """This rank's rows with the columns of all ranks; before, each has its columns of all rows."""
        return x if self.size == 1 else _Exchange.apply(x, self, _deal_rows, _deal_columns)

    def deal_columns(self, x: Shaped[Tensor, "t V *rest"]) -> Shaped[Tensor, "T v *rest"]:
        """The inverse of `deal_rows`."""
        return x if self.size == 1 else _Exchange.apply(x, self, _deal_columns, _deal_rows)


ALONE = Axis()
Exchange = Callable[[Tensor, Axis], Tensor]


def local_part(weight: Tensor) -> Tensor:
    """This rank's part of a weight as a plain tensor, and itself the plain tensor; no copy.

    The gradient of a whole weight is a part of the sum over ranks.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=[Partial() if p.is_replicate() else p for p in weight.placements])


def _gather(x: Tensor, axis: Axis) -> Tensor:
    op = torch.ops._c10d_functional
    return op.wait_tensor(op.all_gather_into_tensor(x.contiguous(), axis.size, axis.group))


def _scatter_sum(x: Tensor, axis: Axis) -> Tensor:
    op = torch.ops._c10d_functional
    return op.wait_tensor(op.reduce_scatter_tensor(x.contiguous(), "sum", axis.size, axis.group))


def _swap(x: Tensor, axis: Axis) -> Tensor:
    """Of `size` parts of the first dimension, one to each rank, and one from each in its place."""
    op, counts = torch.ops._c10d_functional, [len(x) // axis.size] * axis.size
    return op.wait_tensor(op.all_to_all_single(x.contiguous(), counts, counts, axis.group))


def _deal_rows(x: Tensor, axis: Axis) -> Tensor:
    return _swap(x, axis).unflatten(0, (axis.size, -1)).transpose(0, 1).flatten(1, 2)


def _deal_columns(x: Tensor, axis: Axis) -> Tensor:
    return _swap(x.unflatten(1, (axis.size, -1)).transpose(0, 1).flatten(0, 1), axis)


class _Exchange(torch.autograd.Function):
    """What ranks do with rows, and backward its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, there: Exchange, back: Exchange) -> Tensor:
        ctx.axis, ctx.back = axis, back
        return there(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grad, ctx.axis), None, None, None
