"""Plain PyTorch definitions of the small kernels around the products: norm, modulation, rotary positions, SwiGLU."""

# Shapes: T rows, D width, I images, h query heads, g key heads, d head width, f = d / 2, m MLP width.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def modulated_rms_norm(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, "D"],
    shift: Float[Tensor, "I D"] | None,
    scale: Float[Tensor, "I D"] | None,
    row_image: Int64[Tensor, "T"] | None,
    eps: float,
) -> Float[Tensor, "T D"]:
    """RMS norm of each row, then `h * scale + shift` of the row's image; a row of image I stays as it is."""
    h = F.rms_norm(x, weight.shape, weight, eps)
    if shift is None or scale is None or row_image is None:
        return h
    return h * _of_rows(scale, row_image, 1.0) + _of_rows(shift, row_image, 0.0)


def gated_add(
    x: Float[Tensor, "T D"],
    y: Float[Tensor, "T D"],
    gate: Float[Tensor, "I D"],
    row_image: Int64[Tensor, "T"],
) -> Float[Tensor, "T D"]:
    """`x + gate * y` with the gate of the row's image; 1 for a row of image I."""
    return x + _of_rows(gate, row_image, 1.0) * y


def rotary(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    cos: Float[Tensor, "T 1 f"],
    sin: Float[Tensor, "T 1 f"],
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "T g d"]]:
    """Query and key with each pair (j, j + d/2) turned by its row's angle."""
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def swiglu(gate: Float[Tensor, "T m"], up: Float[Tensor, "T m"]) -> Float[Tensor, "T m"]:
    """`silu(gate) * up`."""
    return F.silu(gate) * up


def _of_rows(part: Float[Tensor, "I D"], row_image: Int64[Tensor, "T"], neutral: float) -> Float[Tensor, "T D"]:
    """Each row's line of `part`, as an embedding lookup, whose gradient is faster than that of indexing."""
    return F.embedding(row_image, F.pad(part, (0, 0, 0, 1), value=neutral))


def _rotate(
    x: Float[Tensor, "T h d"], cos: Float[Tensor, "T 1 f"], sin: Float[Tensor, "T 1 f"]
) -> Float[Tensor, "T h d"]:
    first, second = (x if x.dtype == torch.float64 else x.float()).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
