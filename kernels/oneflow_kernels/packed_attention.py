"""Attention inside each sequence of a packed batch."""

# Shapes: T rows, S1 sequences + 1, h query heads, g key and value heads, d head width.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from oneflow_kernels import reference


def packed_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    max_seqlen: int,
    is_causal: bool = False,
) -> Float[Tensor, "T h d"]:
    """Attention of every row to all rows of its own sequence; no row sees another sequence.

        out[t] = sum over u in the sequence of t of softmax_u(query[t] . key[u] / sqrt(d)) value[u]

    On CUDA in bfloat16 or float16 this is torch's varlen flash attention, elsewhere `reference`.

    Args:
        key: h is a multiple of g; query head i reads key head i // (h / g).
        cu_seqlens: first row of each sequence, then T; ascending, sequences may be empty.
        max_seqlen: at least the longest sequence.
        is_causal: a row attends to itself and the rows before it only.

    Raises:
        ValueError: h is not a multiple of g.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, not a multiple of key's {key.shape[1]}")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        grouped = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(grouped, dim=1) if grouped > 1 else x for x in (key, value))
        window = (-1, 0) if is_causal else (-1, -1)  # rows before and after; -1: all of them
        out = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window)
        assert isinstance(out, Tensor), "varlen_attn returns a tuple only if asked for auxiliary outputs"
        return out
    if (
        torch.compiler.is_compiling() or query.is_meta or is_fake(query)
    ):  # the reference looks at the values of cu_seqlens
        return _reference(query, key, value, cu_seqlens, max_seqlen, is_causal)
    return reference.packed_attention(query, key, value, cu_seqlens, is_causal)


INPUTS = "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool is_causal"


@torch.library.custom_op("oneflow::packed_attention", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def _reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool
) -> Tensor:
    """The reference as one step of a compiled graph."""
    return reference.packed_attention(query, key, value, cu_seqlens, is_causal)


@_reference.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool) -> Tensor:
    return torch.empty_like(query)


@torch.library.custom_op(
    "oneflow::packed_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _reference_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.packed_attention_backward(grad, query, key, value, cu_seqlens, is_causal)


@_reference_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.max_seqlen, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_reference_backward(grad, *ctx.saved_tensors, ctx.max_seqlen, ctx.is_causal), None, None, None


_reference.register_autograd(_backward, setup_context=_save_inputs)
