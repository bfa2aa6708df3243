"""What the ranks of a tensor group do together: they deal out the rows of a pack and the width of its weights."""

# Shapes: T rows of a pack, t = T / size rows of one rank; V columns, v = V / size of one rank.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAxis:
    """This rank's place among those that compute one pack together.

    Between the products rows are dealt out: rank r holds and computes rows [r T / size, (r + 1) T / size). A product
    takes all rows and a part of its weight: columns after `gather`, then rows before `scatter_sum`. What is computed
    by all ranks alike counts once in the loss (see `count_once`). So for a weight that is not cut the gradients of
    the ranks are parts of a sum, as with data parallelism, and no activation has to be summed but by `scatter_sum`.

    Source: arXiv:1909.08053 (columns, then rows), arXiv:2205.05198 (rows dealt out between them).
    """

    rank: int = 0
    size: int = 1
    group: str = ""  # name of the process group

    def local_slice(self, count: int) -> slice:
        """This rank's part of `count` things."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x: Shaped[Tensor, "t *rest"]) -> Shaped[Tensor, "T *rest"]:
        """The rows of all ranks. Backward, each rank gets the sum of all ranks' gradients of its rows."""
        return x if self.size == 1 else _Gather.apply(x, self)

    def scatter_sum(self, x: Shaped[Tensor, "T *rest"]) -> Shaped[Tensor, "t *rest"]:
        """This rank's rows of the sum over ranks. Backward, each rank gets the gradients of all rows."""
        return x if self.size == 1 else _ScatterSum.apply(x, self)

    def own_rows(self, x: Shaped[Tensor, "m D"], row: Int64[Tensor, "m"], num_rows: int) -> Shaped[Tensor, "m D"]:
        """What every rank has and one brings into a `scatter_sum` of `num_rows` rows: who holds row `row[i]`."""
        return x if self.size == 1 else x * (row * self.size // num_rows == self.rank)[:, None]

    def deal_rows(self, x: Shaped[Tensor, "T v"]) -> Shaped[Tensor, "t V"]:
        """This rank's rows with the columns of all ranks; before, each has its columns of all rows. No gradient."""
        if self.size == 1:
            return x
        op, rows = torch.ops._c10d_functional, len(x) // self.size
        counts = [rows] * self.size
        parts = op.wait_tensor(op.all_to_all_single(x.contiguous(), counts, counts, self.group))
        return parts.unflatten(0, (self.size, rows)).transpose(0, 1).flatten(1)


NO_TENSOR_AXIS = TensorAxis()


def local_part(weight: Tensor) -> Tensor:
    """This rank's part of a weight as a plain tensor, and itself the plain tensor; no copy.

    The gradient of a whole weight is a part of the sum over ranks.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=[Partial() if p.is_replicate() else p for p in weight.placements])


def _gather(x: Tensor, axis: TensorAxis) -> Tensor:
    op = torch.ops._c10d_functional
    return op.wait_tensor(op.all_gather_into_tensor(x.contiguous(), axis.size, axis.group))


def _scatter_sum(x: Tensor, axis: TensorAxis) -> Tensor:
    op = torch.ops._c10d_functional
    return op.wait_tensor(op.reduce_scatter_tensor(x.contiguous(), "sum", axis.size, axis.group))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        ctx.axis = axis
        return _gather(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scatter_sum(grad, ctx.axis), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        ctx.axis = axis
        return _scatter_sum(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.axis), None
