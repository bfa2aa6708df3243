"""The steps of `bag_cross_entropy` that torch has no function for, and its products with wide sums."""

# Shapes: n slots of a chunk, m = n + 1, B bag tokens, N slots, D trunk width, v of the vocabulary.

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import reference_bag
from oneflow_kernels.backend import uses_triton


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
    """`out = a @ b`, or `out += a @ b`, summed in out's dtype, which may be wider than that of the operands."""
    if a.is_cuda and a.dtype != out.dtype:
        if is_added:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
    elif is_added:
        out.addmm_(a.to(out.dtype), b.to(out.dtype))
    else:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


@register_flop_formula(torch.ops.oneflow.product_)
def _product_flops(out: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[1]


@torch.library.custom_op(
    "oneflow::bag_softmax_",
    mutates_args={"logits", "target"},
    schema="(Tensor(a!) logits, Tensor(b!) target, Tensor bag_tokens, Tensor bag_weight, Tensor starts, "
    "ScalarType dtype) -> (Tensor, Tensor, Tensor)",
)
def softmax_(
    logits: Tensor,
    target: Tensor,
    bag_tokens: Tensor,
    bag_weight: Tensor,
    starts: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the logits of a chunk: they become what the products of the backward pass need of them.

        lse[i]    = logsumexp(logits[i])
        probs[i]  = exp(logits[i] - base[i])         of `dtype`, where the logits were; see `probs_of`
                    but 0 at the tokens of bag i
        mass[i]   = sum of bag_weight over the bag of slot i
        target[b] = logits[i, bag_tokens[b]]         0 where the vocabulary part has it not

    `base` is any number near the largest logit: softmax is probs exp(base - lse), and what is one factor for a row is
    left to the products. So a row is read once, and over parts of a vocabulary nothing waits for the other parts. The
    probability of a bag's own token is the one from which something is subtracted: it is left out of `probs`, which are
    rounded, and goes the way of the one-hot part, in float32.

    Args:
        logits: rows of consecutive elements.
        bag_tokens: counted from the first token of the part.
        starts: bag i is [starts[i], starts[i + 1]); elements of other bag tokens are left alone.

    Returns:
        lse, base, mass.
    """
    return _implementation(logits).softmax_(logits, target, bag_tokens, bag_weight, starts, dtype)


@softmax_.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse, base, mass = (logits.new_empty(logits.shape[0]) for _ in range(3))
    return lse, base, mass


def probs_of(logits: Float[Tensor, "n v"], dtype: torch.dtype) -> Float[Tensor, "n v"]:
    """Where `softmax_` writes what it makes of the logits: each row over its own beginning."""
    return logits.view(dtype)[:, : logits.shape[1]]


@torch.library.custom_op(
    "oneflow::bag_hidden_grad_",
    mutates_args={"grad"},
    schema="(Tensor(a!) grad, Tensor scale, Tensor weight, Tensor bag_tokens, Tensor pair_weight, Tensor starts) -> ()",
)
def hidden_grad_(
    grad: Tensor, scale: Tensor, weight: Tensor, bag_tokens: Tensor, pair_weight: Tensor, starts: Tensor
) -> None:
    """`grad[i] = scale[i] grad[i] - sum over bag i of pair_weight[b] weight[bag_tokens[b]]`, as for `softmax_`."""
    _implementation(grad).hidden_grad_(grad, scale, weight, bag_tokens, pair_weight, starts)


@torch.library.custom_op(
    "oneflow::bag_weight_grad_",
    mutates_args={"grad"},
    schema="(Tensor(a!) grad, Tensor hidden, Tensor bag_tokens, Tensor bag_slot, Tensor pair_weight) -> ()",
)
def weight_grad_(grad: Tensor, hidden: Tensor, bag_tokens: Tensor, bag_slot: Tensor, pair_weight: Tensor) -> None:
    """`grad[token] -= sum over its bag tokens b of pair_weight[b] hidden[bag_slot[b]]`, in the order of b."""
    _implementation(grad).weight_grad_(grad, hidden, bag_tokens, bag_slot, pair_weight)


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
