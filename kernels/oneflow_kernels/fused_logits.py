"""What is asked of the logits of a whole vocabulary, answered while they are computed: they are never written."""

# Shapes: F slots, D trunk width, v of the vocabulary.

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import reference_bag
from oneflow_kernels.bag_operations import has_kernel, wide


def _implementation(x: Tensor) -> ModuleType:
    if has_kernel(x):
        from oneflow_kernels import fused_logits_kernels  # here: it needs Triton

        return fused_logits_kernels
    return reference_bag


@torch.library.custom_op(
    "oneflow::logsumexp_of_logits", mutates_args=(), schema="(Tensor hidden, Tensor weight) -> Tensor"
)
def logsumexp_of_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """`logsumexp(hidden[i] @ weight.T)` of each row.

    Numerics: products and sums in float32 (float64 of float64 operands).
    """
    return _implementation(hidden).logsumexp_of_logits(hidden, weight)


@logsumexp_of_logits.register_fake
def _(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))


@torch.library.custom_op(
    "oneflow::noisy_best_token",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor noise_key, float temperature, int first_token, int limit) "
    "-> (Tensor, Tensor)",
)
def noisy_best_token(
    hidden: Tensor, weight: Tensor, noise_key: Tensor, temperature: float, first_token: int, limit: int
) -> tuple[Tensor, Tensor]:
    """For each row the largest noisy logit of a part of a vocabulary, and whose it is; see `sample_bag`.

    Args:
        first_token: whose row is the first of `weight`.
        limit: tokens from here on are never the best.

    Returns:
        -inf where no token is below the limit; the lowest token of those that are alike.
    """
    return _implementation(hidden).noisy_best_token(hidden, weight, noise_key, temperature, first_token, limit)


@noisy_best_token.register_fake
def _(hidden: Tensor, weight: Tensor, noise_key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(len(hidden), dtype=wide(hidden.dtype)), torch.empty_like(noise_key)


@register_flop_formula([torch.ops.oneflow.logsumexp_of_logits, torch.ops.oneflow.noisy_best_token])
def _flops(hidden: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * hidden[0] * hidden[1] * weight[0]
