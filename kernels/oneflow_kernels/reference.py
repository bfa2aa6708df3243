"""Plain PyTorch definitions: what every kernel must compute, on any device and in any dtype."""

# Shapes: T rows, S sequences, h query heads, g key and value heads, d head width, N slots, B bag tokens, D width,
# V vocabulary.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def packed_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    cu_seqlens: Int32[Tensor, "S+1"],
) -> Float[Tensor, "T h d"]:
    """Attention of every row to all rows of its own sequence.

    Sequences of like length are computed together, padded to the longest of their group.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    bucket = torch.where(lengths > 0, torch.ceil(torch.log2(lengths.clamp(min=1).double()) * 2), -1)
    outputs, rows = [], []
    for size in bucket.unique().tolist():
        if size < 0:
            continue
        members = (bucket == size).nonzero().squeeze(1)
        longest = int(lengths[members].max())
        place = torch.arange(longest, device=query.device)
        is_real = place < lengths[members, None]
        row = torch.where(is_real, starts[members, None] + place, 0)
        q, k, v = (_gather(x, row, is_real) for x in (query, key, value))
        mask = None if bool(is_real.all()) else is_real[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
        outputs.append(out.transpose(1, 2)[is_real])
        rows.append(row[is_real])
    return torch.cat(outputs)[torch.cat(rows).argsort()]


def _gather(x: Float[Tensor, "T h d"], row: Int64[Tensor, "s l"], is_real: Tensor) -> Float[Tensor, "s h l d"]:
    return x[row].transpose(1, 2)


def bag_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
    chunk_slots: int = 2048,
) -> Float32[Tensor, "B"]:
    """Negative log-likelihood of each bag token under the vocabulary distribution of its slot.

        z[s]   = weight @ hidden[s]                          logits of slot s, float32
        nll[b] = logsumexp(z[s]) - z[s, v]                   s = bag_slot[b], v = bag_tokens[b]

    Only slots that have a bag get logits, `chunk_slots` at a time; with several chunks the logits of one are dropped and
    made again in the backward pass.
    """
    slots, slot_of_bag, bag_size = torch.unique_consecutive(bag_slot, return_inverse=True, return_counts=True)
    if len(slots) <= chunk_slots:
        return _chunk_nll(hidden[slots], weight, bag_tokens, slot_of_bag)
    nll = []
    ends = bag_size.cumsum(0).tolist()
    for first in range(0, len(slots), chunk_slots):
        last = min(first + chunk_slots, len(slots))
        pairs = slice(ends[first - 1] if first else 0, ends[last - 1])
        chunk = hidden[slots[first:last]], weight, bag_tokens[pairs], slot_of_bag[pairs] - first
        nll.append(checkpoint(_chunk_nll, *chunk, use_reentrant=False))
    return torch.cat(nll)


def _chunk_nll(hidden: Tensor, weight: Tensor, bag_tokens: Tensor, bag_slot: Tensor) -> Tensor:
    logits = _upcast(hidden) @ _upcast(weight).T
    return (logits.logsumexp(-1)[bag_slot] - logits[bag_slot, bag_tokens]).float()


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
