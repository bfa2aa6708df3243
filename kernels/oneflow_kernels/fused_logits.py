"""What is asked of the logits of a whole vocabulary, answered while they are computed: they are never written."""

# Shapes: F slots, D trunk width, v of the vocabulary.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import reference_bag
from oneflow_kernels.bag_operations import has_kernel, wide


@torch.library.custom_op(
    "oneflow::logsumexp_of_logits", mutates_args=(), schema="(Tensor hidden, Tensor weight, float softcap) -> Tensor"
)
def logsumexp_of_logits(hidden: Tensor, weight: Tensor, softcap: float) -> Tensor:
    """`logsumexp(z[i])` of each row, `z = capped(hidden @ weight.T, softcap)`.

    Numerics: products and sums in float32 (float64 of float64 operands).
    """
    if has_kernel(hidden):
        from oneflow_kernels import fused_logits_kernels as kernels

        return kernels.logsumexp_of_logits(hidden, weight, softcap)
    return reference_bag.logsumexp_of_logits(hidden, weight, softcap)


@logsumexp_of_logits.register_fake
def _(hidden: Tensor, weight: Tensor, softcap: float) -> Tensor:
    return hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))


@register_flop_formula(torch.ops.oneflow.logsumexp_of_logits)
def _logsumexp_flops(hidden: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * hidden[0] * hidden[1] * weight[0]


@torch.library.custom_op(
    "oneflow::noisy_best_token",
    mutates_args=(),
    schema="(Tensor hidden, Tensor? other, Tensor weight, Tensor noise_key, float temperature, float guidance, "
    "float softcap, int first_token, int limit) -> (Tensor, Tensor)",
)
def noisy_best_token(
    hidden: Tensor,
    other: Tensor | None,
    weight: Tensor,
    noise_key: Tensor,
    temperature: float,
    guidance: float,
    softcap: float,
    first_token: int,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """For each row the largest noisy logit of a part of a vocabulary, and whose it is; see `sample_bag`.

    Args:
        other: hidden states of guidance 0, or none.
        first_token: whose row is the first of `weight`.
        limit: tokens from here on are never the best.

    Returns:
        -inf where no token is below the limit; the lowest token of those that are alike.
    """
    arguments = hidden, other, weight, noise_key, temperature, guidance, softcap, first_token, limit
    if has_kernel(hidden):
        from oneflow_kernels import fused_logits_kernels as kernels

        return kernels.noisy_best_token(*arguments)
    return reference_bag.noisy_best_token(*arguments)


@noisy_best_token.register_fake
def _(hidden: Tensor, other: Tensor | None, weight: Tensor, noise_key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(len(hidden), dtype=wide(hidden.dtype)), torch.empty_like(noise_key)


@register_flop_formula(torch.ops.oneflow.noisy_best_token)
def _best_flops(hidden: Any, other: Any, weight: Any, *_: Any, **__: Any) -> int:
    return (2 if other is None else 4) * hidden[0] * hidden[1] * weight[0]
