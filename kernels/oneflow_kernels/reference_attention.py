"""Plain PyTorch definition of attention to intervals of keys, in float32 (float64 of float64)."""

# Shapes: T rows, U keys, h query heads, g key and value heads, d head width; n rows of a stretch and the k keys that
# these and no other rows attend to.

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oneflow_kernels.key_intervals import KeyIntervals


def interval_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    intervals: KeyIntervals,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "h T"]]:
    """Attention of row t to keys [start[t], end[t]), and the log-sum-exp of its scores.

    S = Q K^T / sqrt(d), -inf outside of the interval      L = logsumexp(S)      out = exp(S - L) V
    """
    out = torch.empty_like(query)
    logsumexp = query.new_empty(query.shape[1], len(query), dtype=_sum_dtype(query))
    for rows, keys, is_seen in _stretches(intervals):
        scores = _scores(query[rows], key[keys], is_seen)
        logsumexp[:, rows] = scores.logsumexp(-1)
        probs = _probs(scores, logsumexp[:, rows])
        out[rows] = torch.einsum("htu,uhd->thd", probs, _for_heads(value[keys], query)).to(out.dtype)
    return out, logsumexp


def interval_attention_backward(
    grad: Float[Tensor, "T h d"],
    grad_logsumexp: Float[Tensor, "h T"] | None,
    out: Float[Tensor, "T h d"],
    logsumexp: Float[Tensor, "h T"],
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    intervals: KeyIntervals,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "U g d"], Float[Tensor, "U g d"]]:
    """Gradients of `interval_attention` with respect to query, key and value.

    P = exp(S - L)      delta = sum(dO O) - dL      dV = P^T dO
    dS = P (dO V^T - delta)      dQ = dS K / sqrt(d)      dK = dS^T Q / sqrt(d)
    """
    d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    dtype, num_kv_heads, scale = _sum_dtype(query), key.shape[1], query.shape[2] ** -0.5
    delta = (grad.to(dtype) * out.to(dtype)).sum(-1).T
    delta = delta if grad_logsumexp is None else delta - grad_logsumexp
    for rows, keys, is_seen in _stretches(intervals):
        q, g = query[rows].to(dtype), grad[rows].to(dtype)
        k, v = _for_heads(key[keys], query), _for_heads(value[keys], query)
        probs = _probs(_scores(query[rows], key[keys], is_seen), logsumexp[:, rows])
        d_scores = probs * (torch.einsum("thd,uhd->htu", g, v) - delta[:, rows, None]) * scale
        d_query[rows] = torch.einsum("htu,uhd->thd", d_scores, k).to(query.dtype)
        for total, weights, x in ((d_key, d_scores, q), (d_value, probs, g)):
            of_heads = torch.einsum("htu,thd->uhd", weights, x)
            total[keys] = of_heads.unflatten(1, (num_kv_heads, -1)).sum(2).to(total.dtype)
    return d_query, d_key, d_value


def _stretches(intervals: KeyIntervals) -> Iterator[tuple[slice, slice, Bool[Tensor, "n k"]]]:
    """The shortest stretches of rows that share no key with other rows, their keys, and which of these a row sees."""
    start, end = intervals.start, intervals.end
    is_first = torch.ones_like(start, dtype=torch.bool)
    is_first[1:] = end[:-1] <= start[1:]
    firsts = is_first.nonzero().flatten().tolist()
    for first, last in pairwise([*firsts, len(start)]):
        rows, keys = slice(first, last), slice(int(start[first]), int(end[last - 1]))
        key = torch.arange(keys.start, keys.stop, device=start.device)
        yield rows, keys, (key >= start[rows, None]) & (key < end[rows, None])


def _scores(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "k g d"], is_seen: Bool[Tensor, "n k"]
) -> Float[Tensor, "h n k"]:
    scores = torch.einsum("thd,uhd->htu", query.to(_sum_dtype(query)), _for_heads(key, query))
    return (scores * query.shape[2] ** -0.5).masked_fill(~is_seen, -torch.inf)


def _probs(scores: Float[Tensor, "h n k"], logsumexp: Float[Tensor, "h n"]) -> Float[Tensor, "h n k"]:
    """Zeros where a row has no key at all."""
    return (scores - logsumexp.masked_fill(logsumexp.isneginf(), 0.0)[..., None]).exp()


def _for_heads(x: Float[Tensor, "k g d"], query: Float[Tensor, "_ h d"]) -> Float[Tensor, "k h d"]:
    """Key or value heads repeated for the query heads that share them."""
    return x.to(_sum_dtype(x)).repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
