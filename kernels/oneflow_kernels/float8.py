"""Linear layers whose three products are taken in float8, forward and backward."""

# Shapes: T rows, K inputs, N outputs.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MULTIPLE = 16  # what the hardware asks of every size that a product sums over, and of a weight's outputs
MIN_CAPABILITY = (8, 9)  # of a GPU: Ada, Hopper and later
TINY = 1e-30  # the least amplitude, so that zeros stay zeros


def float8_linear(x: Float[Tensor, "T K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "T N"]:
    """`x @ weight.T` from operands rounded to float8, accumulated in float32, in x's dtype.

        q(a) = round8(a / s) * s,  s = max|a| / (largest float8)
        y = q(x) q(weight)^T        dx = q(dy) q(weight)        dweight = q(dy)^T q(x)

    Values are rounded to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits, a wider range); each tensor has one
    scale, found anew at each call, so nothing is carried from step to step. x and weight are kept for the backward pass
    as they came: what is a parameter, or what several layers read, costs no copy.

    Raises:
        ValueError: K, N, or T where a gradient is wanted, is not a multiple of 16.

    Numerics: rounding moves a value by at most 1/16 of itself or s / 2^10, whichever is more (e5m2: 1/8, s / 2^17);
    sums are in float32, rounded once. Of normal operands, results are off by 4 percent of their norm, gradients by 6.
    Deterministic.
    Source: arXiv:2209.05433.
    """
    check_sizes("float8_linear", weight.shape)
    if torch.is_grad_enabled() and x.shape[0] % MULTIPLE:
        raise ValueError(
            f"float8_linear: {x.shape[0]} rows are not a multiple of {MULTIPLE}, as float8 products need; "
            "make data.rows_per_pack one"
        )
    return _Float8Linear.apply(x, weight)


def check_sizes(name: str, shape: torch.Size) -> None:
    """Whether a weight of this shape can be multiplied in float8.

    Raises:
        ValueError: a size is not a multiple of 16.
    """
    if any(size % MULTIPLE for size in shape):
        raise ValueError(
            f"{name}: a weight of {' x '.join(map(str, shape))} cannot be multiplied in float8, which needs multiples "
            f'of {MULTIPLE}; change the sizes of [model], or set train.precision = "bf16"'
        )


def check_device(device_type: str) -> None:
    """Whether products in float8 exist on this process's device; the CPU has them too, only slowly.

    Raises:
        ValueError: the GPU is too old.
    """
    if device_type == "cuda" and torch.cuda.get_device_capability() < MIN_CAPABILITY:
        own = ".".join(map(str, torch.cuda.get_device_capability()))
        raise ValueError(
            "train.precision: float8 needs a GPU of compute capability 8.9 or later; "
            f'this is {torch.cuda.get_device_name()} with {own}; set train.precision = "bf16"'
        )


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(_rounded(x), _rounded(weight), x.dtype, is_forward=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        values, scale = _rounded(grad, torch.float8_e5m2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _product((values, scale), _transposed(_rounded(weight)), x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _product(_transposed((values, scale)), _transposed(_rounded(x)), weight.dtype)
        return grad_x, grad_weight


Rounded = tuple[Tensor, Tensor]  # float8 values [m, n] and the float32 scale [] that they are multiplied by


def _rounded(x: Float[Tensor, "m n"], dtype: torch.dtype = torch.float8_e4m3fn) -> Rounded:
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=TINY) / largest
    return (x.float() / scale).to(dtype), scale


def _transposed(rounded: Rounded) -> Rounded:
    return rounded[0].t().contiguous(), rounded[1]


def _product(left: Rounded, right: Rounded, dtype: torch.dtype, is_forward: bool = False) -> Float[Tensor, "m n"]:
    """`left @ right.T`; the hardware wants rows of both, and backward the longer accumulation."""
    (a, a_scale), (b, b_scale) = left, right
    return torch._scaled_mm(a, b.t(), a_scale, b_scale, out_dtype=dtype, use_fast_accum=is_forward)
