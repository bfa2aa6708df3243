"""Rotary positions of query and key."""

# Shapes: T rows, h query heads, g key heads, d head width, f = d / 2.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from oneflow_kernels import reference_fused
from oneflow_kernels.backend import uses_triton

MAX_WIDTH = 256  # of a head in one tile


def rotary(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    cos: Float32[Tensor, "T 1 f"],
    sin: Float32[Tensor, "T 1 f"],
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "T g d"]]:
    """Query and key with each pair (j, j + d/2) turned by its row's angle, both in one launch.

        out[t, :, j]       = x[t, :, j] cos[t, j] - x[t, :, j + d/2] sin[t, j]
        out[t, :, j + d/2] = x[t, :, j + d/2] cos[t, j] + x[t, :, j] sin[t, j]

    Args:
        query: d is even. It may be cut from something wider, such as the product of one weight for query, key and
            value; the result is contiguous.
        key: in the dtype of query.

    Returns:
        Differentiable in query and key, not in the angles.

    Raises:
        ValueError: dtypes differ, or cos or sin needs a gradient.

    Numerics: in float32, rounded once; the gradient is turned back by the same angle. float64, and heads wider than
    256, are computed by the definition.
    Source: arXiv:2104.09864.
    """
    if key.dtype != query.dtype:
        raise ValueError(f"query is {query.dtype} but key is {key.dtype}; cast one of them")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("rotary: cos and sin get no gradient; detach them")
    if query.dtype == torch.float64 or query.shape[2] > MAX_WIDTH or not uses_triton(query):
        return reference_fused.rotary(query, key, cos, sin)
    return _rotary(query, key, cos, sin, False)


@torch.library.custom_op(
    "oneflow::rotary",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor cos, Tensor sin, bool is_inverse) -> (Tensor, Tensor)",
)
def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, is_inverse: bool) -> tuple[Tensor, Tensor]:
    from oneflow_kernels import rotary_kernels as kernels  # triton is not on every machine

    query, key = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key))
    outputs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key)]
    num_rows, num_heads, head_width = query.shape
    launch = kernels.launches_for(head_width).best(query)
    with torch.cuda.device_of(query):
        kernels.rotate[(num_rows,)](
            query, key, cos.contiguous(), sin.contiguous(), *outputs,
            *query.stride()[:2], *key.stride()[:2], num_heads, key.shape[1], head_width // 2,
            IS_INVERSE=is_inverse, **launch.options(),
        )  # fmt: skip
    return outputs[0], outputs[1]


@_rotary.register_fake
def _(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, is_inverse: bool) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _save_angles(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *_, cos, sin, ctx.is_inverse = inputs
    ctx.save_for_backward(cos, sin)


def _gradients(ctx: Any, query_grad: Tensor, key_grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_rotary(query_grad, key_grad, *ctx.saved_tensors, not ctx.is_inverse), None, None, None


_rotary.register_autograd(_gradients, setup_context=_save_angles)
