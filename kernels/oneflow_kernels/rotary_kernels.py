"""Rotary positions of query and key as a Triton kernel."""

# Shapes: T rows, h query heads, g key heads, d head width, f = d / 2.

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import triton
import triton.language as tl

from oneflow_kernels.launches import ALL, Launch, Launches, Variant, describe, on
from oneflow_kernels.triton_ops import cast

# HEADS times COLS pairs at once, so many heads of one row that each thread has eight to sixteen pairs.
LAUNCHES = {  # by the width of half a head
    32: Launches("rotary, 32 pairs", on(ALL, Launch({"HEADS": 16, "COLS": 32}, 2, 1))),
    64: Launches(
        "rotary, 64 pairs", on(ALL, Launch({"HEADS": 16, "COLS": 64}, 4, 1), Launch({"HEADS": 8, "COLS": 64}, 2, 1))
    ),
    128: Launches("rotary, 128 pairs", on(ALL, Launch({"HEADS": 8, "COLS": 128}, 4, 1))),
}


def launches_for(head_width: int) -> Launches:
    """The narrowest that take heads of this width."""
    return next(launches for pairs, launches in LAUNCHES.items() if 2 * pairs >= head_width)


@no_type_check
@triton.jit
def _turn(
    x, out, cosine, sine, row, row_stride, head_stride, num_heads, num_pairs, HEADS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """All heads of one row of query or key."""
    col = tl.arange(0, COLS)[None, :]
    for first in range(0, num_heads, HEADS):
        head = first + tl.arange(0, HEADS)[:, None]
        inside = (head < num_heads) & (col < num_pairs)
        source = x + row * row_stride + head * head_stride + col
        left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(source + num_pairs, mask=inside, other=0.0).to(tl.float32)
        target = out + row * num_heads * num_pairs * 2 + head * num_pairs * 2 + col
        dtype: tl.constexpr = out.dtype.element_ty
        tl.store(target, cast(left * cosine - right * sine, dtype), mask=inside)
        tl.store(target + num_pairs, cast(right * cosine + left * sine, dtype), mask=inside)


@no_type_check
@triton.jit
def rotate(
    query, key, cos, sin, query_out, key_out,
    query_row_stride, query_head_stride, key_row_stride, key_head_stride, num_heads, num_kv_heads, num_pairs,
    HEADS: tl.constexpr, COLS: tl.constexpr, IS_INVERSE: tl.constexpr,
):  # fmt: skip
    """One row: its cosines and sines are loaded once for all heads of query and key."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, COLS)[None, :]
    cosine = tl.load(cos + row * num_pairs + col, mask=col < num_pairs, other=0.0)
    sine = tl.load(sin + row * num_pairs + col, mask=col < num_pairs, other=0.0)
    if IS_INVERSE:
        sine = -sine
    _turn(query, query_out, cosine, sine, row, query_row_stride, query_head_stride, num_heads, num_pairs, HEADS, COLS)
    _turn(key, key_out, cosine, sine, row, key_row_stride, key_head_stride, num_kv_heads, num_pairs, HEADS, COLS)


TYPES = {
    **dict.fromkeys(("query_row_stride", "query_head_stride", "key_row_stride", "key_head_stride"), "i32:16"),
    **dict.fromkeys(("num_heads", "num_kv_heads"), "i32"),
    **dict.fromkeys(("cos", "sin"), "*fp32"),
    "num_pairs": "i32:16",
}


def variants() -> Iterator[Variant]:
    """Every kernel as it is shipped."""
    for dtype in ("bf16", "fp16", "fp32"):
        for launches in LAUNCHES.values():
            for is_inverse in (False, True):
                yield from describe(rotate, launches, {"IS_INVERSE": is_inverse}, TYPES, dtype)
