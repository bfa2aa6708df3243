"""A product with a whole vocabulary whose tiles are reduced where they are computed, as Triton kernels."""

# Shapes: F rows, D width, v of the vocabulary.

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from oneflow_kernels.launches import ALL, AMD, NEW, OLD, Launch, Launches, on
from oneflow_kernels.triton_ops import dot

GROUP = 16  # tiles of rows that go through the vocabulary together


def _tiles(rows: int, tokens: int, width: int, num_warps: int, num_stages: int) -> Launch:
    return Launch({"BLOCK_M": rows, "BLOCK_N": tokens, "BLOCK_K": width}, num_warps, num_stages)


LOGSUMEXP = {  # by bytes of an element
    2: Launches(
        "logsumexp of logits, 2 bytes",
        on(NEW, _tiles(128, 256, 64, 8, 3), _tiles(128, 128, 64, 8, 4))
        | on(OLD, _tiles(128, 128, 64, 8, 3), _tiles(128, 128, 32, 8, 4))
        | on(AMD, _tiles(128, 128, 32, 4, 2)),
    ),
    4: Launches("logsumexp of logits, 4 bytes", on(ALL, _tiles(64, 64, 32, 4, 2))),
}
BEST_TOKEN = {
    2: Launches(
        "best token, 2 bytes",
        on(NEW, _tiles(64, 128, 64, 8, 4), _tiles(64, 64, 64, 4, 4))
        | on(OLD, _tiles(64, 128, 64, 8, 4))
        | on(AMD, _tiles(64, 128, 32, 4, 2)),
    ),
    4: Launches("best token, 4 bytes", on(ALL, _tiles(64, 64, 32, 8, 2))),
}


@no_type_check
@triton.jit
def _place(num_rows, num_tiles, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """Which tile a program computes: GROUP tiles of rows share each tile of the vocabulary while it is near."""
    program = tl.program_id(0)
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    first = program // (GROUP * num_tiles) * GROUP
    count = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * num_tiles)
    return first + within % count, within // count


@no_type_check
@triton.jit
def _product(
    hidden, weight, row, token, width, stride, weight_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Logits of a tile."""
    column = tl.arange(0, BLOCK_K)
    left = hidden + row.to(tl.int64)[:, None] * stride + column[None, :]
    right = weight + token.to(tl.int64)[None, :] * weight_stride + column[:, None]
    logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        if IS_EVEN:
            logits += dot(tl.load(left + start), tl.load(right + start))
        else:
            inside = start + column < width
            x = tl.load(left + start, mask=inside[None, :], other=0.0)
            logits += dot(x, tl.load(right + start, mask=inside[:, None], other=0.0))
    return logits


@no_type_check
@triton.jit(do_not_specialize=["num_rows"])
def logsumexp(
    hidden, weight, out, num_rows, vocab, width, stride, weight_stride, IS_EVEN: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of the logits of one tile."""
    row_tile, tile = _place(num_rows, tl.cdiv(vocab, BLOCK_N), BLOCK_M, GROUP)
    row, token = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    logits = _product(
        hidden, weight, tl.minimum(row, num_rows - 1), tl.minimum(token, vocab - 1), width, stride, weight_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, IS_EVEN,
    )  # fmt: skip
    z = tl.where((token < vocab)[None, :], logits, -float("inf"))
    top = tl.max(z, 1)
    total = tl.sum(tl.exp(z - top[:, None]), 1)
    tl.store(out + tile.to(tl.int64) * num_rows + row, top + tl.log(total), mask=row < num_rows)


@no_type_check
@triton.jit
def _gumbel(key, group, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Noise of the tokens 4 group, 4 group + 1, ... under the key of each row."""
    zero = (group * 0).to(tl.uint32)[None, :]
    a, b, c, d = tl.philox(key[:, None], group.to(tl.uint32)[None, :], zero, zero, zero)
    word = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK_M, BLOCK_N])
    u = tl.minimum(word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.99999994039535522)
    rest = 1.0 - u
    # log(1 - u), exact also where 1 - u is rounded
    size = tl.where(rest == 1.0, u, -tl.log(rest) * u / (1.0 - tl.where(rest == 1.0, 0.5, rest)))
    return -tl.log(size)


@no_type_check
@triton.jit(do_not_specialize=["num_rows", "first_token", "limit"])
def best_token(
    hidden, weight, noise_key, best, best_token, num_rows, vocab, width, stride, weight_stride,
    inverse_temperature, first_token, limit, IS_EVEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of the noisy logits of one tile. Tiles begin at multiples of BLOCK_N in the whole vocabulary, as its noise."""
    before = first_token % BLOCK_N
    row_tile, tile = _place(num_rows, tl.cdiv(before + vocab, BLOCK_N), BLOCK_M, GROUP)
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tile * BLOCK_N - before + tl.arange(0, BLOCK_N)
    near_row, near_own = tl.minimum(row, num_rows - 1), tl.maximum(tl.minimum(own, vocab - 1), 0)
    z = _product(
        hidden, weight, near_row, near_own, width, stride, weight_stride, BLOCK_M, BLOCK_N, BLOCK_K, IS_EVEN
    )  # fmt: skip
    key = tl.load(noise_key + near_row)
    group = (first_token - before + tile * BLOCK_N) // 4 + tl.arange(0, BLOCK_N // 4)
    z = z * inverse_temperature + _gumbel(key, group, BLOCK_M, BLOCK_N)
    inside = (own >= 0) & (own < vocab) & (own + first_token < limit)
    z = tl.where(inside[None, :], z, -float("inf"))
    place = tile.to(tl.int64) * num_rows + row
    tl.store(best + place, tl.max(z, 1), mask=row < num_rows)
    token = first_token - before + tile * BLOCK_N + tl.argmax(z, 1)
    tl.store(best_token + place, token.to(tl.int64), mask=row < num_rows)


# Launches; what each computes is said in `fused_logits`.


def logsumexp_of_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """One value from each tile, then one from those of a row."""
    launch = LOGSUMEXP[hidden.itemsize].best(hidden)
    grid, parts = _tiles_of(launch, hidden, len(weight))
    (rows, width), vocab = hidden.shape, len(weight)
    launch.run(
        logsumexp, grid, hidden, hidden, weight, parts, rows, vocab, width, hidden.stride(0), weight.stride(0),
        IS_EVEN=width % launch.tiles["BLOCK_K"] == 0, GROUP=GROUP,
    )  # fmt: skip
    return parts.logsumexp(0)


def noisy_best_token(
    hidden: Tensor, weight: Tensor, noise_key: Tensor, temperature: float, first_token: int, limit: int
) -> tuple[Tensor, Tensor]:
    """The best of each tile, then that of a row."""
    launch = BEST_TOKEN[hidden.itemsize].best(hidden)
    grid, best = _tiles_of(launch, hidden, first_token % launch.tiles["BLOCK_N"] + len(weight))
    token = torch.empty_like(best, dtype=torch.int64)
    (rows, width), vocab = hidden.shape, len(weight)
    launch.run(
        best_token, grid, hidden, hidden, weight, noise_key, best, token,
        rows, vocab, width, hidden.stride(0), weight.stride(0), 1.0 / temperature, first_token, limit,
        IS_EVEN=width % launch.tiles["BLOCK_K"] == 0, GROUP=GROUP,
    )  # fmt: skip
    value = best.amax(0)
    return value, torch.where(best == value, token, torch.iinfo(torch.int64).max).amin(0)


def _tiles_of(launch: Launch, hidden: Tensor, vocab: int) -> tuple[tuple[int], Tensor]:
    """How many tiles all logits have, and room for a number of each row of each."""
    tiles = triton.cdiv(vocab, launch.tiles["BLOCK_N"])
    row_tiles = triton.cdiv(len(hidden), launch.tiles["BLOCK_M"])
    return (row_tiles * tiles,), hidden.new_empty(tiles, len(hidden), dtype=torch.float32)
