"""Plain PyTorch definitions: what every kernel must compute, on any device and in any dtype."""

# Shapes: T rows, S1 sequences + 1, h query heads, g key and value heads, d head width.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor


def packed_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    is_causal: bool = False,
) -> Float[Tensor, "T h d"]:
    """Attention of every row to all rows of its own sequence, or (`is_causal`) to itself and those before it.

    Sequences of like length are computed together, each padded to the longest of its group.
    """
    source, place_of_row, groups = _group_by_length(cu_seqlens)
    sizes = [num_sequences * longest for num_sequences, longest in groups]
    padded = [_Regroup.apply(x, source, place_of_row).split(sizes) for x in (query, key, value)]
    is_real = (source < len(query)).split(sizes)
    outputs = []
    for (num_sequences, longest), q, k, v, mask in zip(groups, *padded, is_real, strict=True):
        q, k, v = (x.view(num_sequences, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        # Padding comes last, so that under a causal mask no row of the sequence sees it.
        mask = None if is_causal or bool(mask.all()) else mask.view(num_sequences, 1, 1, longest)
        is_grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=is_grouped)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return _Regroup.apply(torch.cat(outputs), place_of_row, source)


def packed_attention_backward(
    grad: Float[Tensor, "T h d"],
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    is_causal: bool = False,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "T g d"], Float[Tensor, "T g d"]]:
    """Gradients of `packed_attention` with respect to query, key and value.

    P  = softmax(Q K^T / sqrt(d))      dV = P^T dO                  dQ = dS K / sqrt(d)
    dP = dO V^T                        dS = P (dP - sum(P dP))      dK = dS^T Q / sqrt(d)
    """
    source, place_of_row, groups = _group_by_length(cu_seqlens)
    sizes = [num_sequences * longest for num_sequences, longest in groups]
    is_real = source < len(query)
    row = source.clamp(max=len(query) - 1)
    padded = [x[row].split(sizes) for x in (query, key, value)]
    padded.append((grad[row] * is_real[:, None, None]).split(sizes))
    num_shared, scale = query.shape[1] // key.shape[1], query.shape[2] ** -0.5
    results = []
    for (num_sequences, longest), q, k, v, g, mask in zip(groups, *padded, is_real.split(sizes), strict=True):
        q, k, v, g = (x.view(num_sequences, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v, g))
        k, v = (x.repeat_interleave(num_shared, dim=1) for x in (k, v))
        is_seen = mask.view(num_sequences, 1, 1, longest).expand(-1, 1, longest, -1)
        is_seen = is_seen.tril() if is_causal else is_seen
        probs = (q @ k.mT * scale).masked_fill(~is_seen, -torch.inf).softmax(-1)
        d_probs = g @ v.mT
        d_scores = probs * (d_probs - (probs * d_probs).sum(-1, keepdim=True)) * scale
        results.append([x.transpose(1, 2).flatten(0, 1) for x in (d_scores @ k, d_scores.mT @ q, probs.mT @ g)])
    d_query, d_key, d_value = (torch.cat(parts)[place_of_row] for parts in zip(*results, strict=True))
    return d_query, *(x.unflatten(1, (-1, num_shared)).sum(2) for x in (d_key, d_value))


def _group_by_length(
    cu_seqlens: Int32[Tensor, "S1"],
) -> tuple[Int64[Tensor, "M"], Int64[Tensor, "T"], list[tuple[int, int]]]:
    """How rows are laid out for dense attention.

    Returns:
        The row at each of M padded places (T at padding), the place of each row, and (sequences, places) per group.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    bucket = torch.where(lengths > 0, (lengths.clamp(min=1).double().log2() * 2).ceil(), -1)
    num_rows = int(cu_seqlens[-1])
    sources, groups = [], []
    for size in bucket.unique().tolist():
        if size < 0:
            continue
        members = (bucket == size).nonzero().squeeze(1)
        longest = int(lengths[members].max())
        place = torch.arange(longest, device=cu_seqlens.device)
        row = torch.where(place < lengths[members, None], starts[members, None] + place, num_rows)
        sources.append(row.flatten())
        groups.append((len(members), longest))
    source = torch.cat(sources)
    place_of_row = torch.empty(num_rows + 1, dtype=torch.int64, device=source.device)
    place_of_row[source] = torch.arange(len(source), device=source.device)
    return source, place_of_row[:num_rows], groups


class _Regroup(torch.autograd.Function):
    """Rows `x[index]`; `inverse` takes them back. Where an index is past the end there is padding.

    Padding gets some row forward, since attention masks it, and no gradient backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.num_rows = len(index)
        return x.index_select(0, index.clamp(max=len(x) - 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad.index_select(0, inverse.clamp(max=ctx.num_rows - 1))
        return rows.index_fill_(0, (inverse >= ctx.num_rows).nonzero().squeeze(1), 0.0), None, None
