"""What `bag_cross_entropy` does between its products, as Triton kernels."""

# Shapes: n slots of a chunk, B bag tokens, N slots, D width, v of the vocabulary. `stride` is from row to row.

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from oneflow_kernels.launches import ALL, Launch, Launches, on
from oneflow_kernels.triton_ops import cast

ROW = Launch({"BLOCK": 4096, "PAIRS": 16}, 16, 1)
SOFTMAX = Launches(
    "bag softmax", on(ALL, ROW) | on(("cuda:90", "cuda:80"), ROW, Launch({"BLOCK": 8192, "PAIRS": 16}, 16, 1))
)
HIDDEN_GRAD = Launches("bag hidden grad", on(ALL, Launch({"BLOCK": 512, "PAIRS": 8}, 4, 1)))
WEIGHT_GRAD = Launches("bag weight grad", on(ALL, Launch({"BLOCK": 512, "PAIRS": 8}, 4, 1)))
LOGITS = Launches("bag logits", on(ALL, Launch({"BLOCK": 256, "PAIRS": 8}, 4, 1)))

# How far above its base a row's largest logit may be: exp(reach) times itself must fit in the dtype of `probs`.
REACH = {torch.float32: 32.0, torch.bfloat16: 32.0, torch.float16: 8.0}


@no_type_check
@triton.jit
def _bag_of(logits, target, bag_tokens, bag_weight, first, end, vocab, PAIRS):
    """Targets of one bag; returns the sum of its weights."""
    mass = tl.zeros([PAIRS], tl.float32)
    for start in range(first, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        inside = pair < end
        token = tl.load(bag_tokens + pair, mask=inside, other=-1)
        weight = tl.load(bag_weight + pair, mask=inside, other=0.0)
        own = (token >= 0) & (token < vocab)
        tl.store(target + pair, tl.load(logits + token, mask=own, other=0.0), mask=inside)
        mass += weight
    return tl.sum(mass, 0)


@no_type_check
@triton.jit
def _clear(probs, bag_tokens, first, end, vocab, PAIRS):
    """Probabilities of a bag's own tokens become 0."""
    for start in range(first, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        token = tl.load(bag_tokens + pair, mask=pair < end, other=-1)
        zeros = tl.zeros([PAIRS], probs.dtype.element_ty)
        tl.store(probs + token, zeros, mask=(token >= 0) & (token < vocab))


@no_type_check
@triton.jit
def bag_softmax(
    logits, probs, target, bag_tokens, bag_weight, starts, lse, base, mass,
    vocab, stride, probs_stride, REACH: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One row, in blocks from its beginning. What is written to a block never lies behind what has been read."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    probs += row * probs_stride
    first, end = tl.load(starts + row), tl.load(starts + row + 1)
    tl.store(mass + row, _bag_of(logits, target, bag_tokens, bag_weight, first, end, vocab, PAIRS))

    lane = tl.arange(0, BLOCK)
    own_base = -float("inf")
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        inside = start + lane < vocab
        z = tl.load(logits + start + lane, mask=inside, other=-float("inf"))
        top = tl.max(z, 0)
        tl.debug_barrier()  # all threads have read this block, which some will now write on
        if top > own_base + REACH:  # in the first block, and hardly ever again
            shrink = tl.exp(own_base - top)
            for before in range(0, start, BLOCK):
                known = tl.load(probs + before + lane).to(tl.float32)
                tl.store(probs + before + lane, cast(known * shrink, probs.dtype.element_ty))
            total *= shrink
            own_base = top
        p = tl.exp(z - own_base)
        total += p
        tl.store(probs + start + lane, cast(p, probs.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # all of the row is written
    first, end = tl.load(starts + row), tl.load(starts + row + 1)  # again: they held no registers meanwhile
    _clear(probs, bag_tokens, first, end, vocab, PAIRS)
    tl.store(base + row, own_base)
    tl.store(lse + row, own_base + tl.log(tl.sum(total, 0)))


@no_type_check
@triton.jit
def bag_hidden_grad(
    grad, scale, weight, bag_tokens, pair_weight, starts, vocab, width, stride,
    BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """A stretch of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = grad + row * width + column
    total = tl.load(place, mask=column < width, other=0.0) * tl.load(scale + row)
    end = tl.load(starts + row + 1)
    for start in range(tl.load(starts + row), end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        token = tl.load(bag_tokens + pair, mask=pair < end, other=-1)
        factor = tl.load(pair_weight + pair, mask=pair < end, other=0.0)
        own = (token >= 0) & (token < vocab)
        rows = tl.load(
            weight + token[:, None] * stride + column[None, :], mask=own[:, None] & (column < width)[None, :], other=0.0
        )
        total -= tl.sum(rows.to(tl.float32) * factor[:, None], 0)
    tl.store(place, total, mask=column < width)


@no_type_check
@triton.jit
def bag_weight_grad(
    grad, hidden, tokens, order, ends, bag_slot, pair_weight, vocab, width, stride,
    BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """A stretch of the row of one token, by the program of the first of its bag tokens."""
    first = tl.program_id(0)
    token = tl.load(tokens + first)
    before = tl.load(tokens + first - 1, mask=first > 0, other=-1)
    if (token < vocab) & (token != before):
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        end = tl.load(ends + first)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(first, end, PAIRS):
            place = start + tl.arange(0, PAIRS)
            pair = tl.load(order + place, mask=place < end, other=0)
            slot = tl.load(bag_slot + pair, mask=place < end, other=0)
            factor = tl.load(pair_weight + pair, mask=place < end, other=0.0)
            inside = (place < end)[:, None] & (column < width)[None, :]
            rows = tl.load(hidden + slot[:, None] * stride + column[None, :], mask=inside, other=0.0)
            total += tl.sum(rows.to(tl.float32) * factor[:, None], 0)
        target = grad + token * width + column
        tl.store(target, tl.load(target, mask=column < width, other=0.0) - total, mask=column < width)


@no_type_check
@triton.jit(do_not_specialize=["num_pairs"])
def bag_logits(
    hidden, weight, bag_tokens, bag_slot, out, num_pairs, vocab, width, hidden_stride, weight_stride,
    BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """A few bag tokens."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    token = tl.load(bag_tokens + pair, mask=pair < num_pairs, other=-1)
    left = hidden + tl.load(bag_slot + pair, mask=pair < num_pairs, other=0)[:, None] * hidden_stride
    right = weight + token[:, None] * weight_stride
    own = ((token >= 0) & (token < vocab))[:, None]
    total = tl.zeros([PAIRS, BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = own & (column < width)
        x = tl.load(left + column, mask=inside, other=0.0).to(tl.float32)
        total += x * tl.load(right + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + pair, tl.sum(total, 1), mask=pair < num_pairs)


# Launches; what each computes is said in `bag_operations`.


def softmax_(
    logits: Tensor, target: Tensor, bag_tokens: Tensor, bag_weight: Tensor, starts: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits become unnormalised probabilities, in place."""
    probs = logits.view(dtype)
    lse, base, mass = (logits.new_empty(len(logits)) for _ in range(3))
    SOFTMAX.best(logits).run(
        bag_softmax, (len(logits),), logits,
        logits, probs, target, bag_tokens, bag_weight, starts, lse, base, mass,
        logits.shape[1], logits.stride(0), probs.stride(0), REACH=REACH[dtype],
    )  # fmt: skip
    return lse, base, mass


def hidden_grad_(
    grad: Tensor, scale: Tensor, weight: Tensor, bag_tokens: Tensor, pair_weight: Tensor, starts: Tensor
) -> None:
    """Row factors and the one-hot part of the gradient of hidden rows."""
    launch = HIDDEN_GRAD.best(grad)
    rows, width = grad.shape
    launch.run(
        bag_hidden_grad, (rows, triton.cdiv(width, launch.tiles["BLOCK"])), grad,
        grad, scale, weight, bag_tokens, pair_weight, starts, len(weight), width, weight.stride(0),
    )  # fmt: skip


def weight_grad_(grad: Tensor, hidden: Tensor, bag_tokens: Tensor, bag_slot: Tensor, pair_weight: Tensor) -> None:
    """The one-hot part of the gradient of the weight: bag tokens by token, tokens of other parts last."""
    launch = WEIGHT_GRAD.best(grad)
    vocab, width = grad.shape
    is_own = (bag_tokens >= 0) & (bag_tokens < vocab) & (pair_weight != 0.0)
    tokens, order = torch.where(is_own, bag_tokens, vocab).sort(stable=True)
    ends = torch.searchsorted(tokens, tokens, right=True)
    launch.run(
        bag_weight_grad, (len(tokens), triton.cdiv(width, launch.tiles["BLOCK"])), grad,
        grad, hidden, tokens, order, ends, bag_slot, pair_weight, vocab, width, hidden.stride(0),
    )  # fmt: skip


def bag_token_logits(hidden: Tensor, weight: Tensor, bag_tokens: Tensor, bag_slot: Tensor) -> Tensor:
    """Logits of the bag tokens alone."""
    launch = LOGITS.best(hidden)
    out = hidden.new_empty(len(bag_tokens), dtype=torch.float32)
    launch.run(
        bag_logits, (triton.cdiv(len(bag_tokens), launch.tiles["PAIRS"]),), hidden,
        hidden, weight, bag_tokens, bag_slot, out, len(bag_tokens), len(weight), hidden.shape[1],
        hidden.stride(0), weight.stride(0),
    )  # fmt: skip
    return out
