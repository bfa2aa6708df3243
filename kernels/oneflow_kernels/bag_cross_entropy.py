"""Cross-entropy of bags of tokens, without logits of slots that have none."""

# Shapes: N slots, B bag tokens, D trunk width, V vocabulary.

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from oneflow_kernels import reference


def bag_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
) -> Float32[Tensor, "B"]:
    """Negative log-likelihood of each bag token under the vocabulary distribution of its slot.

        z[s]   = weight @ hidden[s]                          logits of slot s
        nll[b] = logsumexp(z[s]) - z[s, v]                   s = bag_slot[b], v = bag_tokens[b]

    Args:
        hidden: one row per slot.
        weight: same dtype; the unembedding.
        bag_tokens: in [0, V).
        bag_slot: in [0, N), sorted ascending.

    Returns:
        Nats. Differentiable in `hidden` and `weight`.

    Raises:
        ValueError: the dtypes differ.

    Numerics: products and sums in float32.
    Source: arXiv:2510.03506 Eq. 6.
    """
    _check_dtypes(hidden, weight)
    return reference.bag_cross_entropy(hidden, weight, bag_tokens, bag_slot)


def bag_scores(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "v D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
) -> Float32[Tensor, "2 B"]:
    """For each bag token the logsumexp of its slot's logits, and its own logit: what a part of the vocabulary knows.

    Over all parts, `nll = logsumexp over parts of the first - sum over parts of the second`.

    Args:
        hidden: one row per slot.
        weight: same dtype; v consecutive rows of the unembedding.
        bag_tokens: counted from the first row of `weight`. Those outside [0, v) get logit 0.
        bag_slot: in [0, N), sorted ascending.

    Returns:
        Differentiable in `hidden` and `weight`; `hidden` gets this part's share of its gradient.

    Raises:
        ValueError: the dtypes differ.

    Numerics: products and sums in float32.
    """
    _check_dtypes(hidden, weight)
    return reference.bag_scores(hidden, weight, bag_tokens, bag_slot)


def _check_dtypes(hidden: Tensor, weight: Tensor) -> None:
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}; cast one of them")
