"""Attention in which each row attends to one interval of keys."""

# Shapes: T rows, U keys, h query heads, g key and value heads, d head width.

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import backend
from oneflow_kernels import reference_attention as reference
from oneflow_kernels.key_intervals import KeyIntervals

MAX_WIDTH = 128  # of a head, in a Triton kernel
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of a Triton kernel


def interval_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    intervals: KeyIntervals,
    max_keys: int,
) -> Float[Tensor, "T h d"]:
    """Attention of every row to its interval of keys.

        out[t] = sum over u in [start[t], end[t]) of softmax_u(query[t] . key[u] / sqrt(d)) value[u]

    A row whose interval is empty gets zeros.

    Args:
        key: h is a multiple of g; query head i reads key head i // (h / g).
        intervals: on the same device; see `key_intervals`.
        max_keys: at least the longest interval; what plans count with.

    Raises:
        ValueError: h is not a multiple of g, dtypes differ, or the intervals are of other rows or keys.

    Numerics: scores, softmax and all sums in float32; probabilities and the gradients of scores are rounded to the
    dtype of the inputs before they are multiplied. No atomic sums: two runs give the same bits. Keys outside of a row's
    interval weigh exactly 0, but a NaN or infinite value of a row in the same tile makes the row NaN.
    Source: arXiv:2205.14135, arXiv:2307.08691.
    """
    return interval_attention_with_sums(query, key, value, intervals, max_keys)[0]


def interval_attention_with_sums(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    intervals: KeyIntervals,
    max_keys: int,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "h T"]]:
    """`interval_attention`, and the log-sum-exp over u of query[t] . key[u] / sqrt(d); -inf where there is no key.

    Both are differentiable.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, not a multiple of key's {key.shape[1]}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query is {query.dtype}, key {key.dtype} and value {value.dtype}; cast them to one")
    if len(intervals.start) != len(query):
        raise ValueError(f"intervals are of {len(intervals.start)} rows, but query has {len(query)}")
    if len(intervals.query_start) != len(key):
        raise ValueError(f"intervals are of {len(intervals.query_start)} keys, but key has {len(key)}")
    out, logsumexp = _forward(query.contiguous(), key.contiguous(), value.contiguous(), *intervals, max_keys)
    return out, logsumexp


INPUTS = (
    "Tensor query, Tensor key, Tensor value, "
    "Tensor start, Tensor end, Tensor query_start, Tensor query_end, int max_keys"
)


@torch.library.custom_op("oneflow::interval_attention", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)")
def _forward(
    query: Tensor, key: Tensor, value: Tensor,
    start: Tensor, end: Tensor, query_start: Tensor, query_end: Tensor, max_keys: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    intervals = KeyIntervals(start, end, query_start, query_end)
    compute = _triton_forward if has_kernel(query) else reference.interval_attention
    return compute(query, key, value, intervals)


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(query.shape[1], query.shape[0], dtype=torch.promote_types(query.dtype, torch.float32))
    return torch.empty_like(query), sums


@torch.library.custom_op(
    "oneflow::interval_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? grad_logsumexp, Tensor out, Tensor logsumexp, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, grad_logsumexp: Tensor | None, out: Tensor, logsumexp: Tensor,
    query: Tensor, key: Tensor, value: Tensor,
    start: Tensor, end: Tensor, query_start: Tensor, query_end: Tensor, max_keys: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    intervals = KeyIntervals(start, end, query_start, query_end)
    compute = _triton_backward if has_kernel(query) else reference.interval_attention_backward
    return compute(grad, grad_logsumexp, out, logsumexp, query, key, value, intervals)


@_backward.register_fake
def _(grad: Tensor, grad_logsumexp: Any, out: Any, logsumexp: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, *_ = inputs
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_keys = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, grad_logsumexp: Tensor | None) -> tuple[Tensor | None, ...]:
    out = ctx.saved_tensors[0]
    grad = torch.zeros_like(out) if grad is None else grad.contiguous()
    grad_logsumexp = None if grad_logsumexp is None else grad_logsumexp.contiguous()
    return *_backward(grad, grad_logsumexp, *ctx.saved_tensors, ctx.max_keys), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def has_kernel(query: Tensor) -> bool:
    """Whether a Triton kernel computes on such rows: where one runs at all, of these dtypes and widths."""
    return backend.uses_triton(query) and query.dtype in DTYPES and query.shape[2] <= MAX_WIDTH


@register_flop_formula(torch.ops.oneflow.interval_attention)
def _flops(query: Any, *inputs: Any, **_: Any) -> int:
    """Scores and weighted sums, as if every row attended to as many keys as any."""
    rows, heads, head_width = query
    return 4 * rows * inputs[6] * heads * head_width


@register_flop_formula(torch.ops.oneflow.interval_attention_backward)
def _backward_flops(grad: Any, *inputs: Any, **_: Any) -> int:
    """2.5 times the forward pass; the scores, computed again, are counted once."""
    rows, heads, head_width = grad
    return 10 * rows * inputs[10] * heads * head_width


# What launches the kernels.


def _triton_forward(query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals) -> tuple[Tensor, Tensor]:
    from oneflow_kernels import interval_attention_kernels as kernels

    rows, heads, width = query.shape
    out, logsumexp = torch.empty_like(query), query.new_empty(heads, rows, dtype=torch.float32)
    launch = kernels.launches_of(kernels.FORWARD, query.itemsize, width).best(query)
    launch.run(
        kernels.attention_forward, (-(-rows // launch.tiles["BLOCK_M"]), heads), query,
        query, key, value, intervals.start, intervals.end, out, logsumexp,
        rows, heads, heads // key.shape[1], math.log2(math.e) / math.sqrt(width),
        WIDTH=width, PADDED=kernels.padded_width(width),
    )  # fmt: skip
    return out, logsumexp


def _triton_backward(
    grad: Tensor, grad_logsumexp: Tensor | None, out: Tensor, logsumexp: Tensor,
    query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from oneflow_kernels import interval_attention_kernels as kernels

    rows, heads, width = query.shape
    keys, num_kv_heads, _ = key.shape
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    delta = torch.empty_like(logsumexp)
    inputs = query, key, value, grad, logsumexp, delta
    sizes = rows, heads, heads // num_kv_heads, 1.0 / math.sqrt(width)
    widths = {"WIDTH": width, "PADDED": kernels.padded_width(width)}
    launch = kernels.DELTA.best(query)
    launch.run(
        kernels.attention_delta, (-(-rows // launch.tiles["BLOCK_M"]), heads), query,
        out, grad, delta if grad_logsumexp is None else grad_logsumexp, delta, rows, heads,
        HAS_GRAD=grad_logsumexp is not None, **widths,
    )  # fmt: skip
    launch = kernels.launches_of(kernels.KEY_GRADIENT, query.itemsize, width).best(query)
    launch.run(
        kernels.attention_key_gradient, (-(-keys // launch.tiles["BLOCK_N"]), num_kv_heads), query,
        *inputs, intervals.query_start, intervals.query_end, d_key, d_value, keys, *sizes, **widths,
    )  # fmt: skip
    launch = kernels.launches_of(kernels.QUERY_GRADIENT, query.itemsize, width).best(query)
    launch.run(
        kernels.attention_query_gradient, (-(-rows // launch.tiles["BLOCK_M"]), heads), query,
        *inputs, intervals.start, intervals.end, d_query, *sizes, **widths,
    )  # fmt: skip
    return d_query, d_key, d_value
