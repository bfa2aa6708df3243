"""Cross-entropy of bags of tokens: gradients while the logits are there, no logits of slots without a bag."""

# Shapes: N slots, F of them with a bag, n of these in a chunk, B bag tokens, D trunk width, v of the vocabulary.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from oneflow_kernels.bag_operations import (
    bag_token_logits,
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
    needs_hidden, needs_weight = (torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight))
    if not (needs_hidden or needs_weight):
        return _loss_alone(hidden, weight, bags, part)
    with torch.no_grad():
        d_hidden, d_weight, lse, target = _gradients(hidden, weight, bags, part, needs_hidden, needs_weight)
        loss = _loss_of(lse, target, bags, part)
    return _WithGradients.apply(hidden, weight, loss, bags.filled, d_hidden, d_weight)


class _Bags(NamedTuple):
    """The bags of the filled slots, one after the other.

    slot    2 2 2 5 5 9
    entry   0 0 0 1 1 2        with num_filled 4:  filled  2 5 9 N        starts  0 3 5 6 6
    """

    tokens: Int64[Tensor, "B"]  # counted from the first one of this part of the vocabulary
    slot: Int64[Tensor, "B"]
    weight: Float32[Tensor, "B"]
    entry: Int64[Tensor, "B"]  # which of the filled slots
    filled: Int64[Tensor, "F"]  # the slots; past the last of them N
    starts: Int64[Tensor, "F1"]  # the bag tokens of filled slot e are [starts[e], starts[e + 1])


def _compact(tokens: Tensor, slot: Tensor, weight: Tensor, num_filled: int, num_slots: int) -> _Bags:
    entry = (slot.diff(prepend=slot[:1]) != 0).cumsum(0)
    starts = torch.searchsorted(entry, torch.arange(num_filled + 1, device=slot.device))
    slots = torch.cat([slot, slot.new_full((1,), num_slots)])
    return _Bags(tokens, slot, weight, entry, slots[starts[:-1]], starts)


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known: those of the filled rows of `hidden`, and of `weight`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        loss: Tensor,
        filled: Tensor,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(filled, d_hidden, d_weight)
        ctx.num_slots, ctx.dtype = len(hidden), hidden.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        filled, d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            rows = _times(d_hidden, grad, ctx.dtype)
            d_hidden = rows.new_zeros(ctx.num_slots + 1, rows.shape[1]).index_copy_(0, filled, rows)[:-1]
        if d_weight is not None:
            d_weight = _times(d_weight, grad, ctx.dtype)
        return d_hidden, d_weight, None, None, None, None


def _gradients(
    hidden: Tensor, weight: Tensor, bags: _Bags, part: VocabularyPart, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients of the filled slots and of the weight, before they are rounded; lse [F], targets' own logits [B].

    The gradient of the logits of a slot has a dense part, the other tokens, and a sparse one, the tokens of its bag:

        dz[t]       = mass p[t]                                             t not in the bag
        dz[t]       = mass p[t] - sum over its pairs of bag_weight          t in the bag
                    = - sum over its pairs b of pair_weight[b]
        pair_weight = bag_weight - mass p[t] at the first pair of t, bag_weight at the others

    The dense part is probs scale, with probs = exp(z - base), 0 in the bag, and scale = mass exp(base - lse):

        logits = hidden weight.T -> probs, lse of this part of the vocabulary -> sent to the other ranks
        d_hidden = probs weight                                                  meanwhile
        d_weight += probs.T (scale hidden)                                       when the lse of all has come

    What is left, scale for d_hidden and the sparse part for both, is done to all chunks together.
    """
    num_filled, dtype = len(bags.filled), wide(hidden.dtype)
    d_hidden = hidden.new_empty(num_filled, hidden.shape[1], dtype=dtype) if needs_hidden else None
    d_weight = weight.new_empty(weight.shape, dtype=dtype) if needs_weight else None
    target = hidden.new_zeros(len(bags.slot), dtype=dtype)
    lse, base, scale = (hidden.new_zeros(num_filled, dtype=dtype) for _ in range(3))
    chunks = list(_chunks(num_filled, len(weight)))
    all_logits = hidden.new_empty(chunks[0].stop if chunks else 0, len(weight), dtype=dtype)
    for chunk in chunks:
        rows = hidden.index_select(0, bags.filled[chunk].clamp(max=len(hidden) - 1))
        logits = all_logits[: len(rows)]
        product_(logits, rows, weight.T, False)
        starts = bags.starts[chunk.start : chunk.stop + 1]
        own_lse, base[chunk], mass = softmax_(logits, target, bags.tokens, bags.weight, starts, hidden.dtype)
        sent = begin_gather(F.pad(own_lse, (0, len(bags.slot) - len(rows))), part)  # as much for every pack
        probs = probs_of(logits, hidden.dtype)
        if d_hidden is not None:
            product_(d_hidden[chunk], probs, weight, False)
        lse[chunk] = finish(sent, part)[:, : len(rows)].logsumexp(0)
        scale[chunk] = mass * (base[chunk] - lse[chunk]).exp()
        if d_weight is not None:
            product_(d_weight, probs.T, (rows * scale[chunk, None]).to(rows.dtype), chunk.start > 0)
    entry = bags.entry.clamp(max=max(0, num_filled - 1))
    mass_prob = (target - base[entry]).exp() * scale[entry]
    is_own = (bags.tokens >= 0) & (bags.tokens < len(weight))
    is_first = _is_first_pair(bags.tokens, bags.slot)
    pair_weight = torch.where(is_own, bags.weight - mass_prob.where(is_first, 0.0), 0.0)
    if d_hidden is not None:
        hidden_grad_(d_hidden, scale, weight, bags.tokens, pair_weight, bags.starts)
    if d_weight is not None:
        d_weight = d_weight if chunks else d_weight.zero_()
        weight_grad_(d_weight, hidden, bags.tokens, bags.slot, pair_weight)
    return d_hidden, d_weight, lse, target


def _is_first_pair(tokens: Tensor, slot: Tensor) -> Tensor:
    """Whether none of the bag tokens before is the same token of the same slot.

    slot      2 2 2 5 5
    tokens    8 4 8 4 8
    result    1 1 0 1 1
    """
    order = tokens.argsort(stable=True)  # equal pairs become neighbours, since slots ascend
    is_first = torch.ones_like(slot, dtype=torch.bool)
    is_first[order[1:]] = (tokens[order].diff() != 0) | (slot[order].diff() != 0)
    return is_first


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
    target = bag_token_logits(hidden, weight, bags.tokens, bags.slot)
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
