"""How a time in [0, 1] enters the network, and how rows find what belongs to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.model.linear import Linear


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as a vector: sinusoids, then a two-layer MLP."""

    num_frequencies = 128

    def __init__(self, width: int):
        super().__init__()
        self.hidden = Linear(2 * self.num_frequencies, width)
        self.out = Linear(width, width)

    def forward(self, time: Float32[Tensor, "n"]) -> Float[Tensor, "n D"]:
        sinusoids = time_sinusoids(time, self.num_frequencies).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(sinusoids)))


class Modulation(nn.Module):
    """Shifts, scales and gates from a condition: AdaLN-Zero.

    The parts cycle through shift (starts at 0), scale (starts at 1) and gate (starts at 0).

    Source: arXiv:2212.09748.
    """

    def __init__(self, width: int, num_parts: int):
        super().__init__()
        self.num_parts = num_parts
        self.linear = Linear(width, num_parts * width)  # zero at the start

    def forward(self, condition: Float[Tensor, "n D"]) -> list[Tensor]:
        parts = self.linear(F.silu(condition)).chunk(self.num_parts, dim=-1)
        return [1.0 + part if i % 3 == 1 else part for i, part in enumerate(parts)]


def time_sinusoids(time: Float32[Tensor, "n"], num_frequencies: int) -> Float32[Tensor, "n f"]:
    """Cosines and sines of the time at geometrically spaced frequencies from 1 to 1000 radians per unit time."""
    steps = torch.arange(num_frequencies, device=time.device) / (num_frequencies - 1)
    angle = time[:, None] * torch.exp(math.log(1000.0) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def with_zero_row(x: Float[Tensor, "n D"]) -> Float[Tensor, "m D"]:
    """A last row of zeros, for those who look up nothing."""
    return F.pad(x, (0, 0, 0, 1))


def gather_rows(x: Float[Tensor, "n D"], index: Int64[Tensor, "*m"]) -> Float[Tensor, "*m D"]:
    """`x[index]` as an embedding lookup, whose gradient is several times faster than that of indexing."""
    return F.embedding(index, x)
