"""Cross-entropy of bags of tokens: probabilities kept for the gradients, no logits of slots without a bag."""

# Shapes: N slots, F of them with a bag, n of these in a group, B bag tokens, D trunk width, v of the vocabulary.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from oneflow_kernels.bag_operations import bag_token_logits, base_of_gradients, one_hot_, product_, softmax_, wide
from oneflow_kernels.fused_logits import logsumexp_of_logits
from oneflow_kernels.vocabulary_part import WHOLE, VocabularyPart, begin_gather, begin_sum, finish

CHUNK_SLOTS = 768  # may have logits at once, however many: products of fewer rows are slow
CHUNK_LOGITS = 2**26  # more slots may, up to so many logits; 256 MiB of float32
KEPT = 1.25  # probabilities that are kept take at most so many times the memory of the unembedding's gradient
MULTIPLE = 128  # of slots in a chunk: whole tiles, and addresses as even as compiled kernels expect


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

    With p = softmax(z[s]) and mass[s] the sum of a bag's weights:

        dloss/dz[s] = mass[s] p - sum over the bag of bag_weight[b] onehot(bag_tokens[b])

    This is made chunk by chunk of the filled slots while their logits are there, and kept in the operands' dtype, but
    for a factor of each row. The backward pass multiplies it with the unembedding and with hidden rows: with the logits
    three products of 2 F D v FLOPs. Where it is more than KEPT allows, equal groups of slots keep it in turn, and all
    but the last give their part of the gradients in the forward pass. Where nobody wants a gradient there is one
    product, whose results are summed as they come.

    Args:
        hidden: one row per slot.
        weight: same dtype; the unembedding, or the part of it that this rank has.
        bag_tokens: in [0, V).
        bag_slot: in [0, N), sorted ascending.
        bag_weight: of padding 0.
        num_filled: how many slots are in bag_slot, or more; known to the host, so that nothing waits for the device.
        part: with several ranks, all of them call alike; only sums over their parts of the vocabulary travel.

    Returns:
        Nats, differentiable in `hidden` and `weight`, once; with several groups the backward pass cannot be repeated.
        With several ranks each gets 1 / size of it, so that the loss is the sum over ranks, and of the gradient of
        `hidden` the part that comes from its `weight`. NaN if num_filled is too small.

    Raises:
        ValueError: the dtypes differ, or num_filled is no number of slots.

    Numerics: logits, exponentials and sums in float32 (float64 of float64 operands). Rounded to the operands' dtype, as
    operands of products: the gradient of logits, after the one-hot part was subtracted, and rows times their factor.
    Gradients are rounded once; that of the unembedding once more for each group but the first, and where the incoming
    gradient multiplies what was there before. Deterministic.
    Source: arXiv:2510.03506 Eq. 6; arXiv:2410.10989 (softmax's gradient in the forward pass).
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}; cast one of them")
    if num_filled < min(1, len(bag_slot)):
        raise ValueError(f"num_filled: {num_filled} slots cannot hold {len(bag_slot)} bag tokens")
    hidden, weight = hidden.contiguous(), weight.contiguous()
    bags = _compact(bag_tokens - part.first_token, bag_slot, bag_weight, min(num_filled, len(bag_slot)), len(hidden))
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return _loss_alone(hidden, weight, bags, part)
    with torch.no_grad():
        loss, kept = _forward(hidden, weight, bags, part)
    return _WithGradients.apply(hidden, weight, loss, *kept)


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


class _Kept(NamedTuple):
    """What the backward pass needs of the filled slots, the last group of which is at the end."""

    filled: Int64[Tensor, "F"]
    scale: Float[Tensor, "F"]
    probs: Float[Tensor, "n v"]  # times scale the gradient of the last group's logits
    d_hidden: Float[Tensor, "G D"]  # times scale the gradient of hidden rows of the groups before
    d_weight: Float[Tensor, "v D"] | None  # their part of it


class _WithGradients(torch.autograd.Function):
    """A loss that is known, and the products of its gradients that are left for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, loss: Tensor, *kept: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight, *kept)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, *rest = ctx.saved_tensors
        kept = _Kept(*rest)
        d_hidden = _hidden_grad(hidden, weight, kept, grad) if ctx.needs_input_grad[0] else None
        d_weight = _weight_grad(hidden, weight, kept, grad) if ctx.needs_input_grad[1] else None
        return d_hidden, d_weight, None, *[None] * len(kept)


def _hidden_grad(hidden: Tensor, weight: Tensor, kept: _Kept, grad: Tensor) -> Tensor:
    before, factor = len(kept.filled) - len(kept.probs), kept.scale * grad
    d_hidden = hidden.new_zeros(len(hidden) + 1, hidden.shape[1])  # the last row is of slots that there are not
    d_hidden.index_copy_(0, kept.filled[:before], _times(kept.d_hidden, factor[:before], hidden.dtype))
    products = hidden.new_empty(len(kept.probs), hidden.shape[1], dtype=wide(hidden.dtype))
    product_(products, kept.probs, weight, False)
    return d_hidden.index_copy_(0, kept.filled[before:], _times(products, factor[before:], hidden.dtype))[:-1]


def _weight_grad(hidden: Tensor, weight: Tensor, kept: _Kept, grad: Tensor) -> Tensor:
    """What groups before have left becomes the result: there is no room for both."""
    before = len(kept.filled) - len(kept.probs)
    if kept.d_weight is not None:
        torch.mul(kept.d_weight, grad[None, None], out=kept.d_weight)  # without dimensions grad would be rounded
    d_weight = torch.empty_like(weight) if kept.d_weight is None else kept.d_weight
    rows = _times(_rows(hidden, kept.filled[before:]), kept.scale[before:] * grad, hidden.dtype)
    product_(d_weight, kept.probs.T, rows, before > 0)
    return d_weight


def _forward(hidden: Tensor, weight: Tensor, bags: _Bags, part: VocabularyPart) -> tuple[Tensor, _Kept]:
    """The loss, and what is kept: the last group's probabilities, and products of those before."""
    num_filled, (vocab, width), dtype = len(bags.filled), weight.shape, wide(hidden.dtype)
    target = hidden.new_zeros(len(bags.slot), dtype=dtype)
    lse, scale = (hidden.new_zeros(num_filled, dtype=dtype) for _ in range(2))
    chunk_slots, groups = _sizes(num_filled, vocab, width)
    before = groups[-1].start if groups else 0
    probs = hidden.new_empty(groups[0].stop if groups else 0, vocab)
    logits = hidden.new_empty(min(chunk_slots, len(probs)), vocab, dtype=dtype)
    d_hidden = hidden.new_empty(before, width, dtype=dtype)
    d_weight = torch.empty_like(weight) if before and weight.requires_grad else None
    for group in groups:
        own, probs = _of_group(bags, group), probs[: group.stop - group.start]
        sums = _softmax(probs, logits, target, hidden, weight, own)
        lse[group], scale[group] = _subtract_one_hot(probs, target, *sums, own, part)
        if group.start < before and hidden.requires_grad:
            product_(d_hidden[group], probs, weight, False)
        if group.start < before and d_weight is not None:
            rows = _times(_rows(hidden, own.filled), scale[group], hidden.dtype)
            product_(d_weight, probs.T, rows, group.start > 0)
    return _loss_of(lse, target, bags, part), _Kept(bags.filled, scale, probs, d_hidden, d_weight)


def _sizes(num_filled: int, vocab: int, width: int) -> tuple[int, list[slice]]:
    """How many slots may have logits at once, and the groups whose probabilities are kept at once."""
    chunk_slots = max(CHUNK_SLOTS, CHUNK_LOGITS // vocab // MULTIPLE * MULTIPLE)
    return chunk_slots, _equal(num_filled, max(chunk_slots, int(KEPT * width) // MULTIPLE * MULTIPLE))


def _equal(total: int, limit: int) -> list[slice]:
    """As few stretches of at most `limit` as there can be, of like size."""
    size = -(-total // max(1, -(-total // limit) * MULTIPLE)) * MULTIPLE
    return [slice(first, min(first + size, total)) for first in range(0, total, max(1, size))]


def _of_group(bags: _Bags, group: slice) -> _Bags:
    """Entries of other groups are below 0, or n and more."""
    starts = bags.starts[group.start : group.stop + 1]
    return bags._replace(entry=bags.entry - group.start, filled=bags.filled[group], starts=starts)


def _softmax(
    probs: Tensor, logits: Tensor, target: Tensor, hidden: Tensor, weight: Tensor, bags: _Bags
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a group, in chunks as large as `logits`: lse of this part of the vocabulary, base and mass."""
    found = []
    for chunk in _equal(len(probs), len(logits)):
        rows = _rows(hidden, bags.filled[chunk])
        own_logits, starts = logits[: len(rows)], bags.starts[chunk.start : chunk.stop + 1]
        product_(own_logits, rows, weight.T, False)
        found.append(softmax_(own_logits, probs[chunk], target, bags.tokens, bags.weight, starts))
    lse, base, mass = (torch.cat(parts) for parts in zip(*found, strict=True))
    return lse, base, mass


def _subtract_one_hot(
    probs: Tensor, target: Tensor, lse: Tensor, base: Tensor, mass: Tensor, bags: _Bags, part: VocabularyPart
) -> tuple[Tensor, Tensor]:
    """Probabilities of a group become gradients of logits; lse of the whole vocabulary, and the factors of rows."""
    sent = begin_gather(F.pad(lse, (0, len(bags.slot) - len(lse))), part)  # as much for every pack
    lse = finish(sent, part)[:, : len(lse)].logsumexp(0)
    first_weight = bags.weight[bags.starts[:-1].clamp(max=len(bags.slot) - 1)]
    share = torch.where(mass > 0.0, first_weight / mass, 1.0).clamp(min=2.0**-10)
    base, shrink = base_of_gradients(base, lse, share, probs.dtype)
    one_hot_(probs, shrink, base, lse, mass, target, bags.tokens, bags.weight, bags.entry, bags.starts)
    return lse, mass * (base - lse).exp()


def _rows(hidden: Tensor, filled: Tensor) -> Tensor:
    return hidden.index_select(0, filled.clamp(max=len(hidden) - 1))


def _loss_alone(hidden: Tensor, weight: Tensor, bags: _Bags, part: VocabularyPart) -> Tensor:
    lse = begin_gather(logsumexp_of_logits(_rows(hidden, bags.filled), weight), part)
    target = bag_token_logits(hidden, weight, bags.tokens, bags.slot)
    return _loss_of(finish(lse, part).logsumexp(0), target, bags, part)


def _loss_of(lse: Tensor, target: Tensor, bags: _Bags, part: VocabularyPart) -> Tensor:
    """This rank's share of the loss; `target` is that of its own part."""
    if len(bags.slot) == 0:
        return lse.new_zeros(())
    target = finish(begin_sum(target, part), part)
    slot_lse = lse[bags.entry.clamp(max=len(lse) - 1)].masked_fill(bags.entry >= len(lse), torch.nan)
    return (bags.weight * (slot_lse - target)).sum() / part.size


def _times(rows: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row times its factor, rounded to `dtype` without a copy of all of it in between."""
    return torch.mul(rows, factor[:, None], out=torch.empty_like(rows, dtype=dtype))
