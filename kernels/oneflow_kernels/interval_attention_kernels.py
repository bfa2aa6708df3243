"""Attention in which each row attends to one interval of keys, as Triton kernels."""

# Shapes: T rows, U keys, h query heads, g key and value heads, d head width. Tensors are contiguous: query, out
# [T, h, d], key, value [U, g, d], logsumexp and delta [h, T], interval ends [T] of keys and [U] of queries.
#
# Ends never move left from row to row, so a tile of rows attends to keys from the first row's start to the last row's
# end. What lies between the last row's start and the first row's end is seen by all of the tile: blocks of it, the
# middle, need no mask. Only the blocks before and after, the edges, compare every key with every row's interval.

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from oneflow_kernels.launches import ALL, AMD, CPU, NEW, OLD, Launch, Launches, on
from oneflow_kernels.triton_ops import cast, dot

LOG2_E = tl.constexpr(1.4426950408889634)


@no_type_check
@triton.jit
def _blocks(start, end, first, last, BLOCK: tl.constexpr):
    """How the blocks that rows `first` to `last` attend to are dealt out.

    Returns:
        Where the edge before begins, its blocks; where the middle begins, its blocks; where the edge after begins, its
        blocks; where all end.
    """
    lowest, highest = tl.load(start + first), tl.load(end + last)
    common, common_end = tl.load(start + last), tl.load(end + first)
    num_before = tl.cdiv(tl.maximum(tl.minimum(common, highest) - lowest, 0), BLOCK)
    middle = lowest + num_before * BLOCK
    num_middle = tl.maximum(common_end - middle, 0) // BLOCK
    after = middle + num_middle * BLOCK
    num_after = tl.cdiv(tl.maximum(highest - after, 0), BLOCK)
    return lowest, num_before, middle, num_middle, after, num_after, highest


@no_type_check
@triton.jit
def _load_rows(
    tensor, first, end, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, IS_EDGE: tl.constexpr
):
    """Rows `first` to `first + ROWS` of one head, zeros from `end` on if this is an edge, and past the head's width."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, PADDED)[None, :]
    pointers = tensor + first.to(tl.int64) * stride + (row * stride + column)
    if IS_EDGE:
        if WIDTH == PADDED:
            return tl.load(pointers, mask=first + row < end, other=0.0)
        return tl.load(pointers, mask=(first + row < end) & (column < WIDTH), other=0.0)
    if WIDTH == PADDED:
        return tl.load(pointers)
    return tl.load(pointers, mask=column < WIDTH, other=0.0)


@no_type_check
@triton.jit
def _store_rows(tensor, x, first, end, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, PADDED)[None, :]
    pointers = tensor + first.to(tl.int64) * stride + (row * stride + column)
    tl.store(pointers, cast(x, tensor.dtype.element_ty), mask=(first + row < end) & (column < WIDTH))


@no_type_check
@triton.jit
def _attend(
    q, total, weight, largest, key, value, first, end, row_start, row_end, stride, scale,
    BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, IS_EDGE: tl.constexpr,
):  # fmt: skip
    """One step of the running softmax: sums over one more block of keys."""
    k = _load_rows(key, first, end, stride, BLOCK_N, WIDTH, PADDED, IS_EDGE)
    scores = dot(q, tl.trans(k))
    if IS_EDGE:
        column = (first + tl.arange(0, BLOCK_N))[None, :]
        scores = tl.where((column >= row_start[:, None]) & (column < row_end[:, None]), scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    shift = new_largest * scale
    if IS_EDGE:  # a row that has seen no key yet
        shift = tl.where(shift == float("-inf"), 0.0, shift)
    probs = tl.exp2(scores * scale - shift[:, None])
    shrink = tl.exp2(largest * scale - shift)
    v = _load_rows(value, first, end, stride, BLOCK_N, WIDTH, PADDED, IS_EDGE)
    total = total * shrink[:, None] + dot(cast(probs, v.dtype), v)
    return total, weight * shrink + tl.sum(probs, 1), new_largest


@no_type_check
@triton.jit(do_not_specialize=["num_rows"])
def attention_forward(
    query, key, value, key_start, key_end, out, logsumexp, num_rows, num_heads, group, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one tile of rows of one head; `scale` is log2(e) / sqrt(d)."""
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    row = first + tl.arange(0, BLOCK_M)
    stride, kv_stride = num_heads * WIDTH, num_heads // group * WIDTH
    query, out = query + head * WIDTH, out + head * WIDTH
    key, value = key + head // group * WIDTH, value + head // group * WIDTH
    last = tl.minimum(first + BLOCK_M, num_rows) - 1
    lowest, num_before, middle, num_middle, after, num_after, end = _blocks(key_start, key_end, first, last, BLOCK_N)
    row_start = tl.load(key_start + row, mask=row < num_rows, other=0)
    row_end = tl.load(key_end + row, mask=row < num_rows, other=0)

    q = _load_rows(query, first, num_rows, stride, BLOCK_M, WIDTH, PADDED, True)
    total = tl.zeros([BLOCK_M, PADDED], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for i in range(num_before + num_after):
        block = tl.where(i < num_before, lowest + i * BLOCK_N, after + (i - num_before) * BLOCK_N)
        total, weight, largest = _attend(
            q, total, weight, largest, key, value, block, end, row_start, row_end, kv_stride, scale,
            BLOCK_N, WIDTH, PADDED, True,
        )  # fmt: skip
    for i in range(num_middle):
        total, weight, largest = _attend(
            q, total, weight, largest, key, value, middle + i * BLOCK_N, end, row_start, row_end, kv_stride, scale,
            BLOCK_N, WIDTH, PADDED, False,
        )  # fmt: skip

    is_empty = weight == 0.0
    weight = tl.where(is_empty, 1.0, weight)
    _store_rows(out, total / weight[:, None], first, num_rows, stride, BLOCK_M, WIDTH, PADDED)
    sums = tl.where(is_empty, float("-inf"), (largest * scale + tl.log2(weight)) / LOG2_E)
    tl.store(logsumexp + head.to(tl.int64) * num_rows + row, sums, mask=row < num_rows)


@no_type_check
@triton.jit(do_not_specialize=["num_rows"])
def attention_delta(
    out, grad, grad_logsumexp, delta, num_rows, num_heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HAS_GRAD: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What the gradient of each probability has subtracted: sum(dO O), less the log-sum-exp's own gradient."""
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    row = first + tl.arange(0, BLOCK_M)
    stride = num_heads * WIDTH
    o = _load_rows(out + head * WIDTH, first, num_rows, stride, BLOCK_M, WIDTH, PADDED, True)
    g = _load_rows(grad + head * WIDTH, first, num_rows, stride, BLOCK_M, WIDTH, PADDED, True)
    total = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    place = head.to(tl.int64) * num_rows + row
    if HAS_GRAD:
        total -= tl.load(grad_logsumexp + place, mask=row < num_rows, other=0.0)
    tl.store(delta + place, total, mask=row < num_rows)


@no_type_check
@triton.jit
def _load_sums(tensor, first, end, BLOCK: tl.constexpr, IS_EDGE: tl.constexpr):
    """A number for each row.

    Its places are counted, not named: triton 3.6 then copies one for each thread, where it would take the layout of
    what it is subtracted from and copy sixteen.
    """
    row = first + tl.cumsum(tl.full([BLOCK], 1, tl.int32)) - 1
    if IS_EDGE:
        return tl.load(tensor + row, mask=row < end, other=0.0)
    return tl.load(tensor + row)


@no_type_check
@triton.jit
def _add_key_gradient(
    d_key, d_value, k, v, query, grad, logsumexp, delta, first, end, row_start, row_end, stride, scale,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, IS_EDGE: tl.constexpr,
):  # fmt: skip
    """What one block of queries gives to a tile of keys; scores are transposed, keys by queries."""
    q = _load_rows(query, first, end, stride, BLOCK_M, WIDTH, PADDED, IS_EDGE)
    sums = _load_sums(logsumexp, first, end, BLOCK_M, IS_EDGE) * LOG2_E
    scores = dot(k, tl.trans(q)) * scale - sums[None, :]
    if IS_EDGE:
        column = (first + tl.arange(0, BLOCK_M))[None, :]
        scores = tl.where((column >= row_start[:, None]) & (column < row_end[:, None]), scores, float("-inf"))
    probs = tl.exp2(scores)
    g = _load_rows(grad, first, end, stride, BLOCK_M, WIDTH, PADDED, IS_EDGE)
    d_value += dot(cast(probs, g.dtype), g)
    d_probs = dot(v, tl.trans(g)) - _load_sums(delta, first, end, BLOCK_M, IS_EDGE)[None, :]
    return d_key + dot(cast(probs * d_probs, q.dtype), q), d_value


@no_type_check
@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def attention_key_gradient(
    query, key, value, grad, logsumexp, delta, query_start, query_end, d_key, d_value,
    num_keys, num_rows, num_heads, group, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, summed over all query heads that share it; `scale` is 1 / sqrt(d)."""
    first, head = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    row = first + tl.arange(0, BLOCK_N)
    stride, kv_stride = num_heads * WIDTH, num_heads // group * WIDTH
    last = tl.minimum(first + BLOCK_N, num_keys) - 1
    lowest, num_before, middle, num_middle, after, num_after, end = _blocks(
        query_start, query_end, first, last, BLOCK_M
    )
    row_start = tl.load(query_start + row, mask=row < num_keys, other=0)
    row_end = tl.load(query_end + row, mask=row < num_keys, other=0)

    k = _load_rows(key + head * WIDTH, first, num_keys, kv_stride, BLOCK_N, WIDTH, PADDED, True)
    v = _load_rows(value + head * WIDTH, first, num_keys, kv_stride, BLOCK_N, WIDTH, PADDED, True)
    dk = tl.zeros([BLOCK_N, PADDED], tl.float32)
    dv = tl.zeros([BLOCK_N, PADDED], tl.float32)
    num_edges = num_before + num_after
    for step in range(group * num_edges):  # one loop over heads and blocks, so that loads run ahead across heads
        query_head, i = head * group + step // num_edges, step % num_edges
        block = tl.where(i < num_before, lowest + i * BLOCK_M, after + (i - num_before) * BLOCK_M)
        sums = query_head.to(tl.int64) * num_rows
        dk, dv = _add_key_gradient(
            dk, dv, k, v, query + query_head * WIDTH, grad + query_head * WIDTH, logsumexp + sums, delta + sums,
            block, end, row_start, row_end, stride, scale * LOG2_E, BLOCK_M, WIDTH, PADDED, True,
        )  # fmt: skip
    for step in range(group * num_middle):
        query_head, block = head * group + step // num_middle, middle + step % num_middle * BLOCK_M
        sums = query_head.to(tl.int64) * num_rows
        dk, dv = _add_key_gradient(
            dk, dv, k, v, query + query_head * WIDTH, grad + query_head * WIDTH, logsumexp + sums, delta + sums,
            block, end, row_start, row_end, stride, scale * LOG2_E, BLOCK_M, WIDTH, PADDED, False,
        )  # fmt: skip
    _store_rows(d_key + head * WIDTH, dk * scale, first, num_keys, kv_stride, BLOCK_N, WIDTH, PADDED)
    _store_rows(d_value + head * WIDTH, dv, first, num_keys, kv_stride, BLOCK_N, WIDTH, PADDED)


@no_type_check
@triton.jit
def _add_query_gradient(
    d_query, q, g, sums, delta, key, value, first, end, row_start, row_end, stride, scale,
    BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, IS_EDGE: tl.constexpr,
):  # fmt: skip
    """What one block of keys gives to a tile of queries."""
    k = _load_rows(key, first, end, stride, BLOCK_N, WIDTH, PADDED, IS_EDGE)
    scores = dot(q, tl.trans(k)) * scale - sums[:, None]
    if IS_EDGE:
        column = (first + tl.arange(0, BLOCK_N))[None, :]
        scores = tl.where((column >= row_start[:, None]) & (column < row_end[:, None]), scores, float("-inf"))
    probs = tl.exp2(scores)
    v = _load_rows(value, first, end, stride, BLOCK_N, WIDTH, PADDED, IS_EDGE)
    d_probs = dot(g, tl.trans(v)) - delta[:, None]
    return d_query + dot(cast(probs * d_probs, k.dtype), k)


@no_type_check
@triton.jit(do_not_specialize=["num_rows"])
def attention_query_gradient(
    query, key, value, grad, logsumexp, delta, key_start, key_end, d_query, num_rows, num_heads, group, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of the query, of one tile of rows of one head; `scale` is 1 / sqrt(d)."""
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    row = first + tl.arange(0, BLOCK_M)
    stride, kv_stride = num_heads * WIDTH, num_heads // group * WIDTH
    key, value = key + head // group * WIDTH, value + head // group * WIDTH
    last = tl.minimum(first + BLOCK_M, num_rows) - 1
    lowest, num_before, middle, num_middle, after, num_after, end = _blocks(key_start, key_end, first, last, BLOCK_N)
    row_start = tl.load(key_start + row, mask=row < num_rows, other=0)
    row_end = tl.load(key_end + row, mask=row < num_rows, other=0)

    q = _load_rows(query + head * WIDTH, first, num_rows, stride, BLOCK_M, WIDTH, PADDED, True)
    g = _load_rows(grad + head * WIDTH, first, num_rows, stride, BLOCK_M, WIDTH, PADDED, True)
    place = head.to(tl.int64) * num_rows + row
    sums = tl.load(logsumexp + place, mask=row < num_rows, other=0.0) * LOG2_E
    sums = tl.where(row_start < row_end, sums, 0.0)  # a row without keys has -inf, and no gradient
    row_delta = tl.load(delta + place, mask=row < num_rows, other=0.0)
    dq = tl.zeros([BLOCK_M, PADDED], tl.float32)
    for i in range(num_before + num_after):
        block = tl.where(i < num_before, lowest + i * BLOCK_N, after + (i - num_before) * BLOCK_N)
        dq = _add_query_gradient(
            dq, q, g, sums, row_delta, key, value, block, end, row_start, row_end, kv_stride, scale * LOG2_E,
            BLOCK_N, WIDTH, PADDED, True,
        )  # fmt: skip
    for i in range(num_middle):
        dq = _add_query_gradient(
            dq, q, g, sums, row_delta, key, value, middle + i * BLOCK_N, end, row_start, row_end, kv_stride,
            scale * LOG2_E, BLOCK_N, WIDTH, PADDED, False,
        )  # fmt: skip
    _store_rows(d_query + head * WIDTH, dq * scale, first, num_rows, stride, BLOCK_M, WIDTH, PADDED)


# The ways to launch them, by bytes of an element and whether a head is wider than 64. Narrow heads on new GPUs begin
# with 4 warps, of which a multiprocessor runs several programs: while one waits for its products another's softmax
# computes, and small tiles compute fewer pairs of rows of different documents. float32 is multiplied without matrix
# units, which would cut it down to TF32: it has small tiles, which are for tests and small models.

Table = dict[tuple[int, bool], Launches]
Ways = dict[str, list[Launch]]


def _tiles(rows: int, keys: int, num_warps: int, num_stages: int) -> Launch:
    return Launch({"BLOCK_M": rows, "BLOCK_N": keys}, num_warps, num_stages)


INTERPRETED = on(CPU, _tiles(32, 16, 4, 1))  # so that few rows make several tiles
FLOAT32 = on(ALL, _tiles(16, 32, 8, 1)), on(ALL, _tiles(16, 16, 8, 1))  # of narrow and of wide heads


def _table(name: str, narrow: Ways, wide: Ways, float32: tuple[Ways, Ways] = FLOAT32) -> Table:
    ways = {(2, False): narrow, (2, True): wide, (4, False): float32[0], (4, True): float32[1]}
    return {
        (size, is_wide): Launches(
            f"attention {name}, {size} bytes, {'wide' if is_wide else 'narrow'} heads", INTERPRETED | own
        )
        for (size, is_wide), own in ways.items()
    }


FORWARD = _table(
    "forward",
    on(NEW, _tiles(64, 64, 4, 3), _tiles(64, 128, 4, 3), _tiles(128, 64, 8, 3), _tiles(128, 128, 8, 3))
    | on(OLD, _tiles(128, 64, 8, 3), _tiles(64, 64, 4, 3))
    | on(AMD, _tiles(128, 64, 4, 1)),
    on(NEW, _tiles(128, 64, 8, 3), _tiles(128, 64, 8, 2))
    | on(OLD, _tiles(128, 32, 8, 3), _tiles(64, 64, 4, 2))
    | on(AMD, _tiles(128, 64, 8, 1)),
)
KEY_GRADIENT = _table(
    "key gradient",
    on(NEW, _tiles(64, 64, 4, 3), _tiles(64, 128, 8, 2), _tiles(64, 64, 8, 3))
    | on(OLD, _tiles(32, 128, 8, 2), _tiles(32, 64, 4, 2))
    | on(AMD, _tiles(64, 64, 4, 1)),
    on(NEW, _tiles(64, 64, 8, 2), _tiles(32, 128, 8, 2), _tiles(64, 64, 8, 3))
    | on(OLD, _tiles(64, 64, 8, 2), _tiles(32, 64, 8, 2))
    | on(AMD, _tiles(32, 64, 4, 1)),
    (FLOAT32[1], FLOAT32[1]),
)
QUERY_GRADIENT = _table(
    "query gradient",
    on(NEW, _tiles(64, 64, 4, 3), _tiles(128, 64, 8, 3), _tiles(128, 64, 8, 2))
    | on(OLD, _tiles(128, 64, 8, 2), _tiles(64, 64, 4, 2))
    | on(AMD, _tiles(64, 64, 4, 1)),
    on(NEW, _tiles(128, 64, 8, 2), _tiles(64, 64, 8, 3), _tiles(128, 32, 8, 2))
    | on(OLD, _tiles(128, 32, 8, 2), _tiles(64, 32, 4, 2))
    | on(AMD, _tiles(64, 32, 4, 1)),
    (FLOAT32[0] | on(NEW + OLD, _tiles(32, 32, 8, 1)), FLOAT32[1] | on(OLD, _tiles(32, 32, 8, 2))),
)
DELTA = Launches("attention delta", on(ALL, Launch({"BLOCK_M": 64}, 4, 1)))


def launches_of(table: Table, num_bytes: int, width: int) -> Launches:
    """The ways to launch a kernel for elements and heads of this size."""
    return table[num_bytes, width > 64]


def padded_width(width: int) -> int:
    """The columns of a tile: matrix units take powers of two, 16 at least."""
    return max(16, triton.next_power_of_2(width))
