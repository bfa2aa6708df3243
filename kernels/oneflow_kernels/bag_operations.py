"""The steps of `bag_cross_entropy` that torch has no function for, and its products with wide sums."""

# Shapes: n slots of a chunk or group, m = n + 1, B bag tokens, N slots, D trunk width, v of the vocabulary.

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import reference_bag
from oneflow_kernels.backend import uses_triton

# The logarithm of the largest number in the gradient of logits, before the factors of rows. A product sums thousands of
# them, so some powers of e are left. In float16, which has few, nothing is larger than 1: rows are not made too small.
ROOM = {torch.float64: 64.0, torch.float32: 64.0, torch.bfloat16: 64.0, torch.float16: 0.0}


def wide(dtype: torch.dtype) -> torch.dtype:
    """In what a product of this dtype is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_kernel(x: Tensor) -> bool:
    """Whether Triton computes on `x`; float64, which only tests have, is left to torch."""
    return x.dtype != torch.float64 and uses_triton(x)


def _implementation(x: Tensor) -> ModuleType:
    if has_kernel(x):
        from oneflow_kernels import bag_operations_kernels  # here: it needs Triton

        return bag_operations_kernels
    return reference_bag


@torch.library.custom_op(
    "oneflow::product_", mutates_args={"out"}, schema="(Tensor(a!) out, Tensor a, Tensor b, bool is_added) -> ()"
)
def product_(out: Tensor, a: Tensor, b: Tensor, is_added: bool) -> None:
    """`out = a @ b`, or `out += a @ b`, summed wide and rounded once to out's dtype: that of the operands or wider."""
    options: dict[str, Any] = {"out_dtype": out.dtype} if out.dtype != a.dtype else {}
    if not a.is_cuda:
        sums = a.to(wide(a.dtype)) @ b.to(wide(a.dtype))
        out.copy_(sums.add_(out) if is_added else sums)
    elif is_added:
        torch.addmm(out, a, b, out=out, **options)
    else:
        torch.mm(a, b, out=out, **options)


@register_flop_formula(torch.ops.oneflow.product_)
def _product_flops(out: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[1]


@torch.library.custom_op(
    "oneflow::bag_softmax_",
    mutates_args={"probs", "target"},
    schema="(Tensor logits, Tensor(a!) probs, Tensor(b!) target, Tensor bag_tokens, Tensor bag_weight, Tensor starts)"
    " -> (Tensor, Tensor, Tensor)",
)
def softmax_(
    logits: Tensor, probs: Tensor, target: Tensor, bag_tokens: Tensor, bag_weight: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the logits of a chunk.

        lse[i]    = logsumexp(logits[i])
        probs[i]  = exp(logits[i] - base[i])
        mass[i]   = sum of bag_weight over the bag of slot i
        target[b] = logits[i, bag_tokens[b]]         0 where the vocabulary part has it not

    `base` is any number near the largest logit: softmax is probs exp(base - lse), and what is one factor for a row is
    left to the products. So a row is read once, and over parts of a vocabulary nothing waits for the other parts.

    Args:
        logits: rows of consecutive elements.
        probs: the same, of the dtype of the products.
        bag_tokens: counted from the first token of the part.
        starts: bag i is [starts[i], starts[i + 1]); elements of other bag tokens are left alone.

    Returns:
        lse, base, mass.
    """
    return _implementation(logits).softmax_(logits, probs, target, bag_tokens, bag_weight, starts)


@softmax_.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse, base, mass = (logits.new_empty(logits.shape[0]) for _ in range(3))
    return lse, base, mass


def base_of_gradients(base: Tensor, lse: Tensor, share: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """From where exponentials are measured in gradients of logits, the largest of which is exp(lse - base).

    That fits in `dtype`; and `share` exp(lse - base), of which a bag's own tokens get so many, has no more digits than
    `dtype`, so that it is not rounded with them. For that the base moves by less than a rounding of probabilities.

    Args:
        lse: of the whole vocabulary.
        share: what the first token has of the weights of its bag; in (0, 1].

    Returns:
        The base, and what probabilities measured from the old one are multiplied by: 1, but less where another part of
        the vocabulary has far larger logits, and in float16.
    """
    fitting = torch.maximum(base, lse - ROOM[dtype])
    one_hot = share * (lse - fitting).exp()
    return fitting + (one_hot / one_hot.to(dtype)).log(), (base - fitting).exp()


@torch.library.custom_op(
    "oneflow::bag_one_hot_",
    mutates_args={"probs"},
    schema="(Tensor(a!) probs, Tensor shrink, Tensor base, Tensor lse, Tensor mass, Tensor target, Tensor bag_tokens,"
    " Tensor bag_weight, Tensor row, Tensor starts) -> ()",
)
def one_hot_(
    probs: Tensor,
    shrink: Tensor,
    base: Tensor,
    lse: Tensor,
    mass: Tensor,
    target: Tensor,
    bag_tokens: Tensor,
    bag_weight: Tensor,
    row: Tensor,
    starts: Tensor,
) -> None:
    """What `softmax_` made of a group of slots becomes the gradient of their logits, but for a factor of each row.

        probs[i]   *= shrink[i]
        probs[i, t] = exp(target - base[i]) - exp(lse[i] - base[i]) w / mass[i]

    with t the tokens of bag i and w the sum of their weights in it: in float32, rounded once. Times the row's factor,
    mass exp(base - lse), this is mass p - w. Own tokens of bags without weight stay as they are: that factor is 0.

    Args:
        shrink: what `base_of_gradients` gives, as `base` is.
        lse: of the whole vocabulary; `target` and `bag_tokens` are of this part, as for `softmax_`.
        row: of each bag token; ascending, and not in [0, n) for those of slots outside.
    """
    _implementation(probs).one_hot_(probs, shrink, base, lse, mass, target, bag_tokens, bag_weight, row, starts)


@torch.library.custom_op(
    "oneflow::bag_logits",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bag_tokens, Tensor bag_slot) -> Tensor",
)
def bag_token_logits(hidden: Tensor, weight: Tensor, bag_tokens: Tensor, bag_slot: Tensor) -> Tensor:
    """`hidden[bag_slot[b]] . weight[bag_tokens[b]]` of each bag token; 0 where the vocabulary part has it not."""
    return _implementation(hidden).bag_token_logits(hidden, weight, bag_tokens, bag_slot)


@bag_token_logits.register_fake
def _(hidden: Tensor, weight: Tensor, bag_tokens: Tensor, bag_slot: Tensor) -> Tensor:
    return hidden.new_empty(bag_tokens.shape, dtype=wide(hidden.dtype))
