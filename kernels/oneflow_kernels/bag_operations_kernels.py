"""What `bag_cross_entropy` does between its products, as Triton kernels."""

# Shapes: n slots of a chunk or group, B bag tokens, N slots, D width, v of the vocabulary. `stride`: from row to row.

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
SHRINK = Launches("bag shrink", on(ALL, Launch({"BLOCK": 2048}, 4, 1)))
ONE_HOT = Launches("bag one hot", on(ALL, Launch({"PAIRS": 32}, 4, 1)))
LOGITS = Launches("bag logits", on(ALL, Launch({"BLOCK": 256, "PAIRS": 8}, 4, 1)))

# How far above its base a row's largest logit may be: exp(reach) must fit in the dtype of `probs`.
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
def bag_softmax(
    logits, probs, target, bag_tokens, bag_weight, starts, lse, base, mass,
    vocab, stride, probs_stride, REACH: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One row, in blocks from its beginning."""
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
        if top > own_base + REACH:  # in the first block, and hardly ever again
            shrink = tl.exp(own_base - top)
            tl.debug_barrier()  # all threads have written: one may read here what another wrote
            for before in range(0, start, BLOCK):
                known = tl.load(probs + before + lane).to(tl.float32)
                tl.store(probs + before + lane, cast(known * shrink, probs.dtype.element_ty))
            total *= shrink
            own_base = top
        p = tl.exp(z - own_base)
        total += p
        tl.store(probs + start + lane, cast(p, probs.dtype.element_ty), mask=inside)
    tl.store(base + row, own_base)
    tl.store(lse + row, own_base + tl.log(tl.sum(total, 0)))


@no_type_check
@triton.jit
def bag_shrink(probs, shrink, vocab, probs_stride, BLOCK: tl.constexpr):
    """One row, if it does."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(shrink + row)
    if factor < 1.0:
        for start in range(0, vocab, BLOCK):
            lane = start + tl.arange(0, BLOCK)
            place = probs + row * probs_stride + lane
            known = tl.load(place, mask=lane < vocab, other=0.0).to(tl.float32)
            tl.store(place, cast(known * factor, probs.dtype.element_ty), mask=lane < vocab)


@no_type_check
@triton.jit(do_not_specialize=["num_rows", "num_pairs"])
def bag_one_hot(
    probs, base, lse, mass, target, bag_tokens, bag_weight, row, starts,
    num_rows, num_pairs, vocab, probs_stride, PAIRS: tl.constexpr,
):  # fmt: skip
    """A few bag tokens, each compared with all of its bag; the first of those that are alike writes."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    own_row = tl.load(row + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
    is_inside = (own_row >= 0) & (own_row < num_rows)
    own_mass = tl.load(mass + own_row, mask=is_inside, other=0.0)
    token = tl.load(bag_tokens + pair, mask=is_inside, other=-1).to(tl.int32)
    writes = (own_mass > 0.0) & (token >= 0) & (token < vocab)
    last_row = tl.max(tl.where(writes, own_row, -1), 0)
    if last_row >= 0:
        total = tl.zeros([PAIRS], tl.float32)
        first = tl.load(starts + tl.min(tl.where(writes, own_row, last_row), 0))
        end = tl.load(starts + last_row + 1)
        for start in range(first, end, PAIRS):
            other = start + tl.arange(0, PAIRS)
            other_row = tl.load(row + other, mask=other < end, other=-1).to(tl.int32)
            other_token = tl.load(bag_tokens + other, mask=other < end, other=-1).to(tl.int32)
            weight = tl.load(bag_weight + other, mask=other < end, other=0.0)
            is_alike = (own_row[:, None] == other_row[None, :]) & (token[:, None] == other_token[None, :])
            total += tl.sum(tl.where(is_alike, weight[None, :], 0.0), 1)
            is_behind = is_alike & (other[None, :] < pair[:, None])
            writes &= tl.max(is_behind.to(tl.int32), 1) == 0
        own_base = tl.load(base + own_row, mask=writes, other=0.0)
        unit = tl.exp(tl.load(lse + own_row, mask=writes, other=0.0) - own_base)
        p = tl.exp(tl.load(target + pair, mask=writes, other=0.0) - own_base)
        gradient = p - unit * total / tl.where(writes, own_mass, 1.0)
        place = probs + own_row.to(tl.int64) * probs_stride + token
        tl.store(place, cast(gradient, probs.dtype.element_ty), mask=writes)


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
    logits: Tensor, probs: Tensor, target: Tensor, bag_tokens: Tensor, bag_weight: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits to unnormalised probabilities."""
    lse, base, mass = (logits.new_empty(len(logits)) for _ in range(3))
    SOFTMAX.best(logits).run(
        bag_softmax, (len(logits),), logits,
        logits, probs, target, bag_tokens, bag_weight, starts, lse, base, mass,
        logits.shape[1], logits.stride(0), probs.stride(0), REACH=REACH[probs.dtype],
    )  # fmt: skip
    return lse, base, mass


def one_hot_(
    probs: Tensor, shrink: Tensor, base: Tensor, lse: Tensor, mass: Tensor, target: Tensor, bag_tokens: Tensor,
    bag_weight: Tensor, row: Tensor, starts: Tensor,
) -> None:  # fmt: skip
    """Unnormalised probabilities to gradients of logits."""
    num_rows, vocab = probs.shape
    SHRINK.best(probs).run(bag_shrink, (num_rows,), probs, probs, shrink, vocab, probs.stride(0))
    launch = ONE_HOT.best(probs)
    launch.run(
        bag_one_hot, (triton.cdiv(len(row), launch.tiles["PAIRS"]),), probs,
        probs, base, lse, mass, target, bag_tokens, bag_weight, row, starts,
        num_rows, len(row), vocab, probs.stride(0),
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
