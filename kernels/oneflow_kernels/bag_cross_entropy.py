"""Cross-entropy of bags of tokens: gradients while the logits are there, no logits of slots without a bag."""

# Shapes: N slots, F of them with a bag, n of these in a chunk, B bag tokens, D trunk width, v of the vocabulary.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from oneflow_kernels.bag_operations import (
    bag_logits,
    hidden_grad_,
    probs_of,
    product_,
    softmax_,
    weight_grad_,
    wide,
)
from oneflow_kernels.fused_logits import logsumexp_of_logits
from oneflow_kernels.vocabulary_part import WHOLE, VocabularyPart, begin_gather, begin_sum, finish

CHUNK_SLOTS = 2048  # may be computed together, however many logits they have: products of fewer rows are slow
CHUNK_LOGITS = 2**28  # more slots may be, up to so many logits; 1 GiB of float32


def bag_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "v D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
    bag_weight: Float32[Tensor, "B"],
    num_filled: int,
    *,
    part: VocabularyPart = WHOLE,
) -> Float[Tensor, ""]:
    """The weighted negative log-likelihood of bag tokens under the vocabulary distribution of their slots.

        z[s]   = weight @ hidden[s]
        lse[s] = logsumexp(z[s])
        loss   = sum over b of bag_weight[b] (lse[s] - z[s, bag_tokens[b]])         s = bag_slot[b]

    Gradients are made here, chunk by chunk of the filled slots, while their logits are there; the backward pass
    multiplies them by one number. With p = softmax(z[s]), mass[s] the sum of a bag's weights:

        dloss/dz[s] = mass[s] p - sum over the bag of bag_weight[b] onehot(bag_tokens[b])

    With the logits, the dense part takes three products of 2 F D v FLOPs; what concerns a bag's own tokens, where p and
    one-hot cancel, is added by itself and never rounded. Where nobody wants a gradient there is one product, whose
    results are summed as they come.

    Args:
        hidden: one row per slot.
        weight: same dtype; the unembedding, or the part of it that this rank has.
        bag_tokens: in [0, V).
        bag_slot: in [0, N), sorted ascending.
        bag_weight: of padding 0.
        num_filled: how many slots are in bag_slot, or more; known to the host, so that nothing waits for the device.
        part: with several ranks, all of them call alike; only sums over their parts of the vocabulary travel.

    Returns:
        Nats, differentiable in `hidden` and `weight`, once. With several ranks each gets 1 / size of it, so that the
        loss is the sum over ranks, and of the gradient of `hidden` the part that comes from its `weight`. NaN if
        num_filled is too small.

    Raises:
        ValueError: the dtypes differ, or num_filled is no number of slots.

    Numerics: logits, sums and gradients in float32 (float64 of float64 operands); probabilities and rows times their
    weight are rounded to the operands' dtype, as operands of the products; gradients are rounded once. Deterministic.
    Source: arXiv:2510.03506 Eq. 6; arXiv:2410.10989 (gradients in the forward pass).
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}; cast one of them")
    if num_filled < min(1, len(bag_slot)):
        raise ValueError(f"num_filled: {num_filled} slots cannot hold {len(bag_slot)} bag tokens")
    hidden, weight = hidden.contiguous(), weight.contiguous()
    bags = _compact(bag_tokens - part.first_token, bag_slot, bag_weight, min(num_filled, len(bag_slot)), len(hidden))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _BagCrossEntropy.apply(hidden, weight, *bags, part, hidden.requires_grad, weight.requires_grad)
    return _loss_alone(hidden, weight, bags, part)


class _Bags(NamedTuple):
    """What is in which slot, without the slots that have nothing."""

    tokens: Int64[Tensor, "B"]  # counted from the first one of this part of the vocabulary
    slot: Int64[Tensor, "B"]
    weight: Float32[Tensor, "B"]
    entry: Int64[Tensor, "B"]  # which of the filled slots
    filled: Int64[Tensor, "F"]  # the slots; past the last of them N
    is_first: Bool[Tensor, "B"]  # of the pairs of its slot and its token
    starts: Int64[Tensor, "F1"]  # the bag tokens of filled slot e are [starts[e], starts[e + 1])


def _compact(tokens: Tensor, slot: Tensor, weight: Tensor, num_filled: int, num_slots: int) -> _Bags:
    is_first = torch.ones_like(slot, dtype=torch.bool)
    is_first[1:] = slot[1:] != slot[:-1]
    entry = is_first.cumsum(0) - 1
    starts = torch.searchsorted(entry, torch.arange(num_filled + 1, device=slot.device))
    slots = torch.cat([slot, slot.new_full((1,), num_slots)])
    return _Bags(tokens, slot, weight, entry, slots[starts[:-1]], _is_first_pair(tokens, slot), starts)


def _is_first_pair(tokens: Tensor, slot: Tensor) -> Tensor:
    order = tokens.argsort(stable=True)  # and slots ascend, so that equal pairs are neighbours
    tokens, slot = tokens[order], slot[order]
    is_first = torch.ones_like(slot, dtype=torch.bool)
    is_first[1:] = (tokens[1:] != tokens[:-1]) | (slot[1:] != slot[:-1])
    return torch.empty_like(is_first).scatter_(0, order, is_first)


class _BagCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        slot: Tensor,
        bag_weight: Tensor,
        entry: Tensor,
        filled: Tensor,
        is_first: Tensor,
        starts: Tensor,
        part: VocabularyPart,
        needs_hidden: bool,
        needs_weight: bool,
    ) -> Tensor:
        bags = _Bags(tokens, slot, bag_weight, entry, filled, is_first, starts)
        d_hidden, d_weight, lse, target = _gradients(hidden, weight, bags, part, needs_hidden, needs_weight)
        ctx.save_for_backward(filled, d_hidden, d_weight)
        ctx.num_slots, ctx.dtype = len(hidden), hidden.dtype
        return _loss_of(lse, target, bags, part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        filled, d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            rows = _times(d_hidden, grad, ctx.dtype)
            d_hidden = rows.new_zeros(ctx.num_slots + 1, rows.shape[1]).index_copy_(0, filled, rows)[:-1]
        if d_weight is not None:
            d_weight = _times(d_weight, grad, ctx.dtype)
        return d_hidden, d_weight, *[None] * 10


def _gradients(
    hidden: Tensor, weight: Tensor, bags: _Bags, part: VocabularyPart, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients of the filled slots and of the weight, before they are rounded; lse [F], targets' own logits [B]."""
    num_filled, dtype = len(bags.filled), wide(hidden.dtype)
    d_hidden = hidden.new_empty(num_filled, hidden.shape[1], dtype=dtype) if needs_hidden else None
    d_weight = weight.new_empty(weight.shape, dtype=dtype) if needs_weight else None
    target, pair_prob = (hidden.new_zeros(len(bags.slot), dtype=dtype) for _ in range(2))
    all_lse, all_scale = (hidden.new_zeros(num_filled, dtype=dtype) for _ in range(2))
    chunks = list(_chunks(num_filled, len(weight)))
    all_logits = hidden.new_empty(chunks[0].stop if chunks else 0, len(weight), dtype=dtype)
    for chunk in chunks:
        starts = bags.starts[chunk.start : chunk.stop + 1]
        rows = hidden.index_select(0, bags.filled[chunk].clamp(max=len(hidden) - 1))
        logits = all_logits[: len(rows)]
        product_(logits, rows, weight.T, False)
        pairs = target, pair_prob, bags.tokens, bags.weight, bags.is_first
        own_lse, base, mass = softmax_(logits, *pairs, starts, hidden.dtype)
        sent = begin_gather(F.pad(own_lse, (0, len(bags.slot) - len(rows))), part)  # as much for every pack
        probs = probs_of(logits, hidden.dtype)
        if d_hidden is not None:
            product_(d_hidden[chunk], probs, weight, False)
        lse = all_lse[chunk] = finish(sent, part)[:, : len(rows)].logsumexp(0)
        scale = all_scale[chunk] = mass * (base - lse).exp()
        if d_weight is not None:
            product_(d_weight, probs.T, (rows * scale[:, None]).to(rows.dtype), chunk.start > 0)
    entry = bags.entry.clamp(max=max(0, num_filled - 1))
    is_own = (bags.tokens >= 0) & (bags.tokens < len(weight))
    pair_weight = torch.where(is_own, bags.weight, 0.0) - pair_prob * all_scale[entry]
    if d_hidden is not None:
        hidden_grad_(d_hidden, all_scale, weight, bags.tokens, pair_weight, bags.starts)
    if d_weight is not None:
        d_weight = d_weight if chunks else d_weight.zero_()
        weight_grad_(d_weight, hidden, bags.tokens, bags.slot, pair_weight)
    return d_hidden, d_weight, all_lse, target


def _chunks(num_filled: int, vocab: int) -> Iterator[slice]:
    """Filled slots that are computed together: as few times as memory allows, and no chunk much smaller than others."""
    limit = max(CHUNK_SLOTS, CHUNK_LOGITS // vocab // 128 * 128)
    count = -(-num_filled // limit)
    size = -(-num_filled // max(1, count))
    for first in range(0, num_filled, max(1, size)):
        yield slice(first, min(first + size, num_filled))


def _loss_alone(hidden: Tensor, weight: Tensor, bags: _Bags, part: VocabularyPart) -> Tensor:
    rows = hidden.index_select(0, bags.filled.clamp(max=len(hidden) - 1))
    lse = begin_gather(logsumexp_of_logits(rows, weight), part)
    target = bag_logits(hidden, weight, bags.tokens, bags.slot)
    return _loss_of(finish(lse, part).logsumexp(0), target, bags, part)


def _loss_of(lse: Tensor, target: Tensor, bags: _Bags, part: VocabularyPart) -> Tensor:
    """This rank's share of the loss; `target` is that of its own part."""
    if len(bags.slot) == 0:
        return lse.new_zeros(())
    target = finish(begin_sum(target, part), part)
    slot_lse = lse[bags.entry.clamp(max=len(lse) - 1)].masked_fill(bags.entry >= len(lse), torch.nan)
    return (bags.weight * (slot_lse - target)).sum() / part.size


def _times(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`x * factor`, rounded to `dtype` without a copy of all of it in between."""
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))
