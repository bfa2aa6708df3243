"""Normal values by row and column: any of a matrix alone, on any device, to the same bits."""

# Shapes: r rows, c columns.

from __future__ import annotations

import functools
import hashlib
from statistics import NormalDist

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from oneflow_kernels.philox import philox


def normal_values(
    seed: int, name: str, rows: Int64[Tensor, "r"], columns: Int64[Tensor, "c"]
) -> Float32[Tensor, "r c"]:
    """The standard normal values at these rows and columns of the endless matrix that (seed, name) stands for.

    Eight columns of a row share the counter (column // 8, row, 0, 0): its four words are eight 16-bit halves, and each
    half is the number of a quantile. Devices compute integers and look values up, nothing that they could round in
    different ways.

    Args:
        rows: any, in any order, on the device where the values are wanted.
        columns: ascending; what lies between them is drawn too, and dropped.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    device = rows.device
    values = torch.empty(len(rows), len(columns), device=device)
    if values.numel() == 0:
        return values
    first, last = int(columns[0]) // 8, int(columns[-1]) // 8
    blocks = torch.arange(first, last + 1, device=device)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    chunk_blocks = 2**14 if device.type == "cpu" else 2**20  # what stays in a core's cache; what fills a GPU
    chunk_rows = max(1, chunk_blocks // len(blocks))
    for start in range(0, len(rows), chunk_rows):
        part = rows[start : start + chunk_rows]
        words = torch.stack(philox((blocks[None], part[:, None], zero, zero), key), dim=-1)
        drawn = _quantiles(device).take(torch.stack([words & 0xFFFF, words >> 16], dim=-1)).flatten(1)
        values[start : start + chunk_rows] = drawn.index_select(1, columns - 8 * first)
    return values


@functools.cache
def _quantiles(device: torch.device) -> Float32[Tensor, "65536"]:
    """The middles of 65,536 equally likely parts of the normal distribution: mean 0, variance 1, none beyond 4.33."""
    normal = NormalDist()
    lower = torch.tensor([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768)], dtype=torch.float64)
    both = torch.cat([lower, -lower.flip(0)])
    return (both / both.square().mean().sqrt()).float().to(device)
