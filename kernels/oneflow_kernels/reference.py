"""Plain PyTorch definitions: what every kernel must compute, on any device and in any dtype."""

# Shapes: T rows, U keys (of the same rows, if nothing else is said), S1 sequences + 1, h query heads, g key and value
# heads, d head width; n sequences of a group, padded to L rows and K keys.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor


def packed_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    is_causal: bool = False,
    row_end: Int32[Tensor, "T"] | None = None,
    key_seqlens: Int32[Tensor, "S1"] | None = None,
) -> Float[Tensor, "T h d"]:
    """Attention of every row to all keys of its own sequence, or to those which `is_causal` or `row_end` leaves.

    Sequences of like length are computed together, each padded to the longest of its group.
    """
    queries, keys = _layouts(cu_seqlens, key_seqlens)
    padded = [
        layout.split(_Regroup.apply(x, layout.source, layout.place_of_row))
        for x, layout in ((query, queries), (key, keys), (value, keys))
    ]
    outputs = []
    for q, k, v, mask in zip(*padded, _masks(queries, keys, row_end), strict=True):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        # Padding comes last, so that under a causal mask no row of the sequence sees it.
        mask = None if is_causal or bool(mask.all()) else mask[:, None]
        is_grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=is_grouped)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return _Regroup.apply(torch.cat(outputs), queries.place_of_row, queries.source)


def packed_attention_backward(
    grad: Float[Tensor, "T h d"],
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "U g d"],
    value: Float[Tensor, "U g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    is_causal: bool = False,
    row_end: Int32[Tensor, "T"] | None = None,
    key_seqlens: Int32[Tensor, "S1"] | None = None,
) -> tuple[Float[Tensor, "T h d"], Float[Tensor, "U g d"], Float[Tensor, "U g d"]]:
    """Gradients of `packed_attention` with respect to query, key and value.

    P  = softmax(Q K^T / sqrt(d))      dV = P^T dO                  dQ = dS K / sqrt(d)
    dP = dO V^T                        dS = P (dP - sum(P dP))      dK = dS^T Q / sqrt(d)
    """
    queries, keys = _layouts(cu_seqlens, key_seqlens)
    is_real = queries.source < len(query)
    padded = [
        layout.split(x[layout.source.clamp(max=len(x) - 1)])
        for x, layout in ((query, queries), (key, keys), (value, keys))
    ]
    padded.append(queries.split(grad[queries.source.clamp(max=len(grad) - 1)] * is_real[:, None, None]))
    num_shared, scale = query.shape[1] // key.shape[1], query.shape[2] ** -0.5
    results = []
    for q, k, v, g, mask in zip(*padded, _masks(queries, keys, row_end), strict=True):
        q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
        k, v = (x.repeat_interleave(num_shared, dim=1) for x in (k, v))
        is_seen = mask.expand(-1, q.shape[2], -1).tril() if is_causal else mask
        probs = (q @ k.mT * scale).masked_fill(~is_seen[:, None], -torch.inf).softmax(-1)
        d_probs = g @ v.mT
        d_scores = probs * (d_probs - (probs * d_probs).sum(-1, keepdim=True)) * scale
        results.append([x.transpose(1, 2).flatten(0, 1) for x in (d_scores @ k, d_scores.mT @ q, probs.mT @ g)])
    zero = query.new_zeros(1, *query.shape[1:])  # of a key that no row sees
    d_query, d_key, d_value = (
        torch.cat([*parts, zero])[layout.place_of_row]
        for layout, parts in zip((queries, keys, keys), zip(*results, strict=True), strict=True)
    )
    return d_query, *(x.unflatten(1, (-1, num_shared)).sum(2) for x in (d_key, d_value))


class _Layout(NamedTuple):
    """How rows are laid out for dense attention: groups of sequences, each padded to the longest of its group."""

    source: Int64[Tensor, "M"]  # the row at each of M places, T at padding
    place_of_row: Int64[Tensor, "T"]  # M for the rows of sequences in no group
    shapes: list[tuple[int, int]]  # sequences of each group, and places of each of them

    def split(self, x: Tensor) -> list[Tensor]:
        """The places of each group, as [sequences, places, ...]."""
        parts = x.split([num_sequences * longest for num_sequences, longest in self.shapes])
        return [part.view(*shape, *x.shape[1:]) for shape, part in zip(self.shapes, parts, strict=True)]


def _layouts(cu_seqlens: Int32[Tensor, "S1"], key_seqlens: Int32[Tensor, "S1"] | None) -> tuple[_Layout, _Layout]:
    """Of queries and of keys, in the same groups; sequences without a query are in none."""
    bucket = _bucket_of_length(cu_seqlens)
    if key_seqlens is not None:
        bucket = torch.where(bucket < 0, bucket, bucket * 128 + 1 + _bucket_of_length(key_seqlens))
    groups = [(bucket == number).nonzero().squeeze(1) for number in bucket.unique().tolist() if number >= 0]
    queries = _lay_out(cu_seqlens, groups)
    return queries, queries if key_seqlens is None else _lay_out(key_seqlens, groups)


def _bucket_of_length(cu_seqlens: Int32[Tensor, "S1"]) -> Int64[Tensor, "S"]:
    """The same for sequences whose lengths are within a factor of sqrt(2); -1 for empty ones."""
    lengths = cu_seqlens.diff().long()
    return torch.where(lengths > 0, (lengths.clamp(min=1).double().log2() * 2).ceil(), -1).long()


def _lay_out(cu_seqlens: Int32[Tensor, "S1"], groups: list[Int64[Tensor, "_"]]) -> _Layout:
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    num_rows = int(cu_seqlens[-1])
    sources, shapes = [], []
    for members in groups:
        longest = int(lengths[members].max())
        place = torch.arange(longest, device=cu_seqlens.device)
        row = torch.where(place < lengths[members, None], starts[members, None] + place, num_rows)
        sources.append(row.flatten())
        shapes.append((len(members), longest))
    source = torch.cat(sources)
    place_of_row = torch.full((num_rows + 1,), len(source), dtype=torch.int64, device=source.device)
    place_of_row[source] = torch.arange(len(source), device=source.device)
    return _Layout(source, place_of_row[:num_rows], shapes)


def _masks(
    queries: _Layout, keys: _Layout, row_end: Int32[Tensor, "T"] | None
) -> list[Bool[Tensor, "n 1 K"] | Bool[Tensor, "n L K"]]:
    """Which keys are seen, in each group: none of the padding, and of the others what `row_end` leaves.

    A row of padding sees all of its sequence: that of a row which sees nothing would be NaN, also in gradients.
    """
    num_keys = len(keys.place_of_row)
    key_rows = keys.split(keys.source)
    if row_end is None:
        return [(key_row < num_keys)[:, None] for key_row in key_rows]
    ends = queries.split(F.pad(row_end, (0, 1), value=num_keys)[queries.source])
    return [key_row[:, None] < end[..., None] for key_row, end in zip(key_rows, ends, strict=True)]


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
