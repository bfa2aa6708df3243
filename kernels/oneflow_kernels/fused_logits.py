"""What is asked of the logits of whole vocabularies, answered while they are computed: they are never written."""

# Shapes: F slots, D trunk width, v of the vocabulary.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from oneflow_kernels import reference_bag
from oneflow_kernels.bag_operations import has_kernel, wide


@torch.library.custom_op("oneflow::logsumexp_of_logits", mutates_args=())
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
