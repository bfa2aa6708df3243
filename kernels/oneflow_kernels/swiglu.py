"""The gated activation of the MLP."""

# Shapes: T rows, m MLP width.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from oneflow_kernels import reference_fused
from oneflow_kernels.backend import uses_triton


def swiglu(gate: Float[Tensor, "T m"], up: Float[Tensor, "T m"]) -> Float[Tensor, "T m"]:
    """SwiGLU of two products.

        out = gate * sigmoid(gate) * up

    Only gate and up are kept for the backward pass.

    Args:
        gate: it may be cut from something wider, such as the product of one weight for gate and up.
        up: in the dtype of gate.

    Raises:
        ValueError: dtypes differ.

    Numerics: in float32, rounded once. float64 is computed by the definition.
    Source: arXiv:2002.05202.
    """
    if gate.dtype != up.dtype:
        raise ValueError(f"gate is {gate.dtype} but up is {up.dtype}; cast one of them")
    if gate.dtype == torch.float64 or not uses_triton(gate):
        return reference_fused.swiglu(gate, up)
    return _swiglu(gate, up)


def _lay_out(*tensors: Tensor) -> tuple[list[Tensor], int, tuple[int, ...]]:
    """The tensors as rows of values side by side; one long row where that can be, so that hardly a block is part empty.

    Returns:
        Them; how many rows; the width, then how far apart the rows of each are.
    """
    tensors = tuple(x if x.stride(1) == 1 else x.contiguous() for x in tensors)
    num_rows, width = tensors[0].shape
    if num_rows * width < 2**31 and all(x.is_contiguous() for x in tensors):
        return list(tensors), 1, (num_rows * width, *[0] * len(tensors))
    return list(tensors), num_rows, (width, *[x.stride(0) for x in tensors])


@torch.library.custom_op("oneflow::swiglu", mutates_args=(), schema="(Tensor gate, Tensor up) -> Tensor")
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    from oneflow_kernels import swiglu_kernels as kernels  # triton is not on every machine

    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    inputs, num_rows, sizes = _lay_out(gate, up)
    launch = kernels.FORWARD.best(gate)
    num_blocks = -(-sizes[0] // launch.tiles["COLS"])
    with torch.cuda.device_of(gate):
        kernels.swiglu_forward[(num_rows * num_blocks,)](*inputs, out, *sizes, **launch.options())
    return out


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op(
    "oneflow::swiglu_backward", mutates_args=(), schema="(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)"
)
def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    from oneflow_kernels import swiglu_kernels as kernels

    outputs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up)]
    inputs, num_rows, sizes = _lay_out(gate, up)
    launch = kernels.BACKWARD.best(gate)
    num_blocks = -(-sizes[0] // launch.tiles["COLS"])
    with torch.cuda.device_of(gate):
        kernels.swiglu_backward[(num_rows * num_blocks,)](
            grad.contiguous(), *inputs, *outputs, *sizes, **launch.options()
        )
    return outputs[0], outputs[1]


@_swiglu_backward.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _swiglu_backward(grad, *ctx.saved_tensors)


_swiglu.register_autograd(_gradients, setup_context=_save_inputs)
