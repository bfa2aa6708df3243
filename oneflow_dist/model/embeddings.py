"""How a time in [0, 1] enters the network, and how rows find what belongs to them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.model.linear import Linear

LEAST_TIME_LEFT = 1e-6  # of a text; samples that are done have no more either, so that logarithms stay finite


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as a vector: sinusoids, then a two-layer MLP.

    With `is_of_text` there are sinusoids of the logarithm of the time that is left, too: chances that something is
    missing go to 0 like powers of it.
    """

    num_frequencies = 128

    def __init__(self, width: int, is_of_text: bool = False):
        super().__init__()
        self.is_of_text = is_of_text
        self.hidden = Linear((4 if is_of_text else 2) * self.num_frequencies, width)
        self.out = Linear(width, width)

    def forward(self, time: Float32[Tensor, "n"]) -> Float[Tensor, "n D"]:
        sinusoids = time_sinusoids(time, self.num_frequencies)
        if self.is_of_text:
            share = log_time_left(time) / math.log(LEAST_TIME_LEFT)
            sinusoids = torch.cat([sinusoids, time_sinusoids(share, self.num_frequencies)], dim=-1)
        return self.out(F.silu(self.hidden(sinusoids.to(self.hidden.weight.dtype))))


def log_time_left(text_time: Float32[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """log(1 - t), and no less than that of LEAST_TIME_LEFT."""
    return (1.0 - text_time).clamp(min=LEAST_TIME_LEFT).log()


class Modulation(nn.Module):
    """Shifts, scales and gates from a condition: AdaLN-Zero.

    The parts cycle through shift (starts at 0), scale (starts at 1) and gate (starts at 0).

    Source: arXiv:2212.09748.
    """

    def __init__(self, width: int, num_parts: int, part_width: int = 0):
        """`part_width`: of each part; 0: that of the condition."""
        super().__init__()
        self.num_parts = num_parts
        self.linear = Linear(width, num_parts * (part_width or width))  # zero at the start

    def forward(self, condition: Float[Tensor, "n D"]) -> list[Tensor]:
        parts = self.linear(F.silu(condition)).chunk(self.num_parts, dim=-1)
        return [1.0 + part if i % 3 == 1 else part for i, part in enumerate(parts)]


def time_sinusoids(time: Float32[Tensor, "n"], num_frequencies: int) -> Float32[Tensor, "n f"]:
    """Cosines and sines of the time at geometrically spaced frequencies from 1 to 1000 radians per unit time."""
    steps = torch.arange(num_frequencies, device=time.device) / (num_frequencies - 1)
    angle = time[:, None] * torch.exp(math.log(1000.0) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def spread(x: Float[Tensor, "n D"], index: Int64[Tensor, "m"]) -> Float[Tensor, "m D"]:
    """`x[index]` where many share a few: a product with one-hot rows, whose gradient is one, too, and sorts nothing."""
    return (index[:, None] == torch.arange(len(x), device=x.device)).to(x.dtype) @ x


def place_rows(x: Float[Tensor, "m D"], row: Int64[Tensor, "m"], num_rows: int) -> Float[Tensor, "T D"]:
    """Row `row[i]` is `x[i]`; the others are zeros. No two go to one row, so the gradient is only read."""
    return x.new_zeros(num_rows, x.shape[1]).index_copy(0, row, x)


def take_rows(x: Float[Tensor, "T D"], row: Int64[Tensor, "m"]) -> Float[Tensor, "m D"]:
    """`x[row]`, where no row is taken twice: the gradient is placed, and nothing is summed or sorted."""
    return _TakeRows.apply(x, row)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor) -> Tensor:
        ctx.num_rows = len(x)
        ctx.save_for_backward(row)
        return x.index_select(0, row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (row,) = ctx.saved_tensors
        return place_rows(grad, row, ctx.num_rows), None
