"""Attention inside each sequence of a packed batch."""

# Shapes: T rows, U keys (of the same rows, if nothing else is said), S1 sequences + 1, h query heads, g key and value
# heads, d head width.

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn.attention import varlen
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import backend, flash_attention, reference
from oneflow_kernels.interval_attention import has_kernel, interval_attention
from oneflow_kernels.key_intervals import (
    KeyIntervals,
    block_intervals,
    cached_intervals,
    causal_intervals,
    document_intervals,
)

LOG = logging.getLogger(__name__)
FLASH, TRITON, REFERENCE = "torch's varlen flash attention", "the Triton kernel", "the plain definition"
ASKS_FOR_GROUPS = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters  # from torch 2.12 on


def packed_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    max_seqlen: int,
    is_causal: bool = False,
    row_end: Int32[Tensor, "T"] | None = None,
    key_seqlens: Int32[Tensor, "S1"] | None = None,
) -> Float[Tensor, "T h d"]:
    """Attention of every row to all keys of its own sequence; no row sees another sequence.

        out[t] = sum over u in the sequence of t of softmax_u(query[t] . key[u] / sqrt(d)) value[u]

    On CUDA in bfloat16 or float16 this is FlashAttention 4 or 3, where one that is known is installed, or else what
    `fastest` names: torch's varlen flash attention or `interval_attention`, which also computes in float32, in widths
    that the former has not, and where ONEFLOW_KERNELS is "triton"; elsewhere it is `reference`. With `row_end` or
    `key_seqlens` it is `interval_attention`, where that has a kernel, or else `reference`. The log says once.

    Args:
        key: h is a multiple of g; query head i reads key head i // (h / g).
        cu_seqlens: first row of each sequence, then T; ascending, sequences may be empty.
        max_seqlen: at least the longest sequence, of keys.
        is_causal: a row attends to itself and the rows before it only.
        row_end: row t attends to those rows of its sequence that come before row `row_end[t]`: it never decreases, is
            more than t, and at most the end of the sequence.
        key_seqlens: first key of each sequence, then U, where keys are not of the same rows as queries; as long as
            `cu_seqlens`. A sequence may have keys and no query.

    Raises:
        ValueError: h is not a multiple of g, or more than one of the last three is given.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, not a multiple of key's {key.shape[1]}")
    if is_causal + (row_end is not None) + (key_seqlens is not None) > 1:
        raise ValueError("is_causal, row_end and key_seqlens exclude each other: give one of them at most")
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and not query.is_cuda and (query.is_meta or is_fake(query)):  # a plan: sizes without values
        return _reference(query, key, value, cu_seqlens, max_seqlen, is_causal, row_end, key_seqlens)
    is_plain = row_end is None and key_seqlens is None
    which = _choose(query, is_plain)
    _announce(which, is_plain)
    if which in flash_attention.INTERFACES:
        return flash_attention.flash_attention(query, key, value, cu_seqlens, max_seqlen, is_causal, which)
    if which == FLASH:
        return _varlen_attention(query, key, value, cu_seqlens, max_seqlen, is_causal)
    if which == TRITON:
        intervals = _intervals(cu_seqlens, is_causal, row_end, key_seqlens, len(query), len(key))
        return interval_attention(query, key, value, intervals, max_seqlen)
    if is_compiling:  # the reference looks at the values of cu_seqlens
        return _reference(query, key, value, cu_seqlens, max_seqlen, is_causal, row_end, key_seqlens)
    return reference.packed_attention(query, key, value, cu_seqlens, is_causal, row_end, key_seqlens)


def _intervals(
    cu_seqlens: Tensor,
    is_causal: bool,
    row_end: Tensor | None,
    key_seqlens: Tensor | None,
    num_rows: int,
    num_keys: int,
) -> KeyIntervals:
    if row_end is not None:
        return block_intervals(cu_seqlens, row_end)
    if key_seqlens is not None:
        return cached_intervals(cu_seqlens, key_seqlens, num_rows, num_keys)
    return (causal_intervals if is_causal else document_intervals)(cu_seqlens, num_rows)


_announced: set[str] = set()


def _choose(query: Tensor, is_plain: bool) -> str:
    """What computes; `is_plain`: the rule is one that flash attention knows."""
    is_flash = query.dtype in (torch.bfloat16, torch.float16) and query.shape[2] % 8 == 0 and query.shape[2] <= 256
    if is_plain and query.is_cuda and is_flash and os.environ.get(backend.VARIABLE, "auto") == "auto":
        return _fastest(query.get_device(), query.shape[2])
    return TRITON if has_kernel(query) else REFERENCE


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fastest(device: int, head_width: int) -> str:
    """The fastest for a GPU, which is found by its number: a constant of a compiled graph."""
    major = 0 if torch.version.hip is not None else torch.cuda.get_device_capability(device)[0]
    return fastest(major, head_width)


def fastest(major: int, head_width: int) -> str:
    """What computes on GPUs of a compute capability, in bfloat16 and float16.

    On an H100 the Triton kernel takes 0.82 ms for the documents of a pack of the 1B model, with the backward pass, and
    torch's varlen flash attention 1.37 (docs/gpu.md); with wider heads they have not been compared yet.
    """
    installed = flash_attention.choose(major) if head_width in flash_attention.WIDTHS else ""
    return installed or (TRITON if major == 9 and head_width <= 64 else FLASH)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _announce(which: str, is_plain: bool) -> None:
    """Say it once for a process, compiled or not."""
    line = f"packed attention{'' if is_plain else ' to blocks or kept keys'} is {which}"
    if line not in _announced:
        _announced.add(line)
        LOG.info(line)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool
) -> Tensor:
    """Keys and values are shared by the heads of a group: torch 2.11 does so unasked, and later ones where asked to."""
    options: dict[str, Any] = {"enable_gqa": query.shape[1] > key.shape[1]} if ASKS_FOR_GROUPS else {}
    window = (-1, 0) if is_causal else (-1, -1)  # rows before and after; -1: all of them
    out = varlen.varlen_attn(
        query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window, **options
    )
    assert isinstance(out, Tensor), "varlen_attn returns a tuple only if asked for auxiliary outputs"
    return out


INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool is_causal, "
    "Tensor? row_end, Tensor? key_seqlens"
)


@torch.library.custom_op("oneflow::packed_attention", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def _reference(
    query: Tensor, key: Tensor, value: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, is_causal: bool, row_end: Tensor | None, key_seqlens: Tensor | None,
) -> Tensor:  # fmt: skip
    """The reference as one step of a compiled graph."""
    return reference.packed_attention(query, key, value, cu_seqlens, is_causal, row_end, key_seqlens)


@_reference.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query)


@torch.library.custom_op(
    "oneflow::packed_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _reference_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, is_causal: bool, row_end: Tensor | None, key_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return reference.packed_attention_backward(grad, query, key, value, cu_seqlens, is_causal, row_end, key_seqlens)


@_reference_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.max_seqlen, ctx.is_causal, row_end, key_seqlens = inputs
    ctx.save_for_backward(*tensors, row_end, key_seqlens)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, row_end, key_seqlens = ctx.saved_tensors
    gradients = _reference_backward(grad, *tensors, ctx.max_seqlen, ctx.is_causal, row_end, key_seqlens)
    return *gradients, None, None, None, None, None


_reference.register_autograd(_backward, setup_context=_save_inputs)


# Of sequences a plan knows only how long the longest is.


@register_flop_formula([torch.ops.oneflow.packed_attention, torch.ops.oneflow.flash_attention])
def _flops(
    query: Any, key: Any, value: Any, cu_seqlens: Any, max_seqlen: int, is_causal: bool, *_: Any, **__: Any
) -> int:
    """Scores and weighted sums, as if all sequences were as long as the longest; half of them if causal."""
    rows, heads, head_width = query
    return 4 * rows * max_seqlen * heads * head_width // (1 + is_causal)


@register_flop_formula([torch.ops.oneflow.packed_attention_backward, torch.ops.oneflow.flash_attention_backward])
def _backward_flops(
    grad: Any, query: Any, key: Any, value: Any, cu_seqlens: Any, max_seqlen: int, is_causal: bool, *_: Any, **__: Any
) -> int:
    """2.5 times the forward pass, as flash attention, which computes the scores again."""
    rows, heads, head_width = query
    return 10 * rows * max_seqlen * heads * head_width // (1 + is_causal)
