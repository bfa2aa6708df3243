"""Plain PyTorch definition of attention to intervals of keys, in float32 (float64 of float64)."""

# Shapes: T rows, h query heads, g key and value heads, d head width; n rows of a stretch that attends to itself only.

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oneflow_kernels.key_intervals import KeyIntervals


def interval_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    intervals: KeyIntervals,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "h T"]]:
    """Attention of row t to keys [start[t], end[t]), and the log-sum-exp of its scores.

    S = Q K^T / sqrt(d), -inf outside of the interval      L = logsumexp(S)      out = exp(S - L) V
    """
    out = torch.empty_like(query)
    logsumexp = query.new_empty(query.shape[1], len(query), dtype=_sum_dtype(query))
    for rows, is_seen in _stretches(intervals):
        scores = _scores(query[rows], key[rows], is_seen)
        logsumexp[:, rows] = scores.logsumexp(-1)
        probs = _probs(scores, logsumexp[:, rows])
        out[rows] = torch.einsum("htu,uhd->thd", probs, _for_heads(value[rows], query)).to(out.dtype)
    return out, logsumexp


def interval_attention_backward(
    grad: Float[Tensor, "T h d"],
    grad_logsumexp: Float[Tensor, "h T"] | None,
    out: Float[Tensor, "T h d"],
    logsumexp: Float[Tensor, "h T"],
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    intervals: KeyIntervals,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "T g d"], Float[Tensor, "T g d"]]:
    """Gradients of `interval_attention` with respect to query, key and value.

    P = exp(S - L)      delta = sum(dO O) - dL      dV = P^T dO
    dS = P (dO V^T - delta)      dQ = dS K / sqrt(d)      dK = dS^T Q / sqrt(d)
    """
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    dtype, num_kv_heads, scale = _sum_dtype(query), key.shape[1], query.shape[2] ** -0.5
    delta = (grad.to(dtype) * out.to(dtype)).sum(-1).T
    delta = delta if grad_logsumexp is None else delta - grad_logsumexp
    for rows, is_seen in _stretches(intervals):
        q, g = query[rows].to(dtype), grad[rows].to(dtype)
        k, v = _for_heads(key[rows], query), _for_heads(value[rows], query)
        probs = _probs(_scores(query[rows], key[rows], is_seen), logsumexp[:, rows])
        d_scores = probs * (torch.einsum("thd,uhd->htu", g, v) - delta[:, rows, None]) * scale
        d_query[rows] = torch.einsum("htu,uhd->thd", d_scores, k).to(query.dtype)
        for total, weights, x in ((d_key, d_scores, q), (d_value, probs, g)):
            of_heads = torch.einsum("htu,thd->uhd", weights, x)
            total[rows] = of_heads.unflatten(1, (num_kv_heads, -1)).sum(2).to(total.dtype)
    return d_query, d_key, d_value


def _stretches(intervals: KeyIntervals) -> Iterator[tuple[slice, Bool[Tensor, "n n"]]]:
    """The shortest stretches of rows that attend to rows of their own only, and which those are."""
    start, end = intervals.start, intervals.end
    row = torch.arange(len(start), device=start.device)
    is_first = torch.ones_like(start, dtype=torch.bool)
    is_first[1:] = (end[:-1] <= row[1:]) & (start[1:] >= row[1:])
    firsts = is_first.nonzero().flatten().tolist()
    for first, last in zip(firsts, [*firsts[1:], len(start)], strict=True):
        rows = slice(first, last)
        yield rows, (row[rows] >= start[rows, None]) & (row[rows] < end[rows, None])


def _scores(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "n g d"], is_seen: Bool[Tensor, "n n"]
) -> Float[Tensor, "h n n"]:
    scores = torch.einsum("thd,uhd->htu", query.to(_sum_dtype(query)), _for_heads(key, query))
    return (scores * query.shape[2] ** -0.5).masked_fill(~is_seen, -torch.inf)


def _probs(scores: Float[Tensor, "h n n"], logsumexp: Float[Tensor, "h n"]) -> Float[Tensor, "h n n"]:
    """Zeros where a row has no key at all."""
    return (scores - logsumexp.masked_fill(logsumexp.isneginf(), 0.0)[..., None]).exp()


def _for_heads(x: Float[Tensor, "n g d"], query: Float[Tensor, "_ h d"]) -> Float[Tensor, "n h d"]:
    """Key or value heads repeated for the query heads that share them."""
    return x.to(_sum_dtype(x)).repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
