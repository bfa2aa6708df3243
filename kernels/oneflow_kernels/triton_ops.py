"""What all kernels do in Triton, so that the interpreter rounds and multiplies as a GPU does."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

# Known where a kernel is decorated: its code is Python then.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@no_type_check
@triton.jit
def dot(a, b):
    """`a @ b` in float32, of operands of one dtype; float32 is not cut down to TF32.

    The interpreter's product of bfloat16 is wrong, without a word, so there the operands are widened first.
    """
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@no_type_check
@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 `x` in another dtype, rounded to nearest, ties to even.

    The interpreter cuts bits off on the way to bfloat16, so there they are rounded by hand.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    return x.to(dtype)
