"""SwiGLU as Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import triton
import triton.language as tl

from oneflow_kernels.launches import ALL, Launch, Launches, Variant, describe, on
from oneflow_kernels.triton_ops import cast

FORWARD = Launches("swiglu forward", on(ALL, Launch({"COLS": 1024}, 4, 1), Launch({"COLS": 2048}, 4, 1)))
BACKWARD = Launches("swiglu backward", on(ALL, Launch({"COLS": 1024}, 4, 1), Launch({"COLS": 2048}, 8, 1)))


@no_type_check
@triton.jit
def _place(gate, up, width, gate_stride, up_stride, COLS: tl.constexpr):
    """A block of columns of one row: where it lies in gate, up and a contiguous tensor, and what is inside."""
    num_blocks = tl.cdiv(width, COLS)
    program = tl.program_id(0).to(tl.int64)
    row = program // num_blocks
    col = program % num_blocks * COLS + tl.arange(0, COLS)
    return gate + row * gate_stride + col, up + row * up_stride + col, row * width + col, col < width


@no_type_check
@triton.jit
def swiglu_forward(gate, up, out, width, gate_stride, up_stride, COLS: tl.constexpr):
    """A block of columns of one row."""
    gates, ups, place, inside = _place(gate, up, width, gate_stride, up_stride, COLS)
    x = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(ups, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, cast(x * tl.sigmoid(x) * y, out.dtype.element_ty), mask=inside)


@no_type_check
@triton.jit
def swiglu_backward(grad, gate, up, grad_gate, grad_up, width, gate_stride, up_stride, COLS: tl.constexpr):
    """A block of columns of one row; with s = sigmoid(gate), the derivative of silu is s + gate s (1 - s)."""
    gates, ups, place, inside = _place(gate, up, width, gate_stride, up_stride, COLS)
    x = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(ups, mask=inside, other=0.0).to(tl.float32)
    down = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(x)
    slope = share + x * share * (1.0 - share)
    tl.store(grad_gate + place, cast(down * y * slope, grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_up + place, cast(down * x * share, grad_up.dtype.element_ty), mask=inside)


TYPES = dict.fromkeys(("width", "gate_stride", "up_stride"), "i32:16")


def variants() -> Iterator[Variant]:
    """Every kernel as it is shipped."""
    for dtype in ("bf16", "fp16", "fp32"):
        yield from describe(swiglu_forward, FORWARD, {}, TYPES, dtype)
        yield from describe(swiglu_backward, BACKWARD, {}, TYPES, dtype)
