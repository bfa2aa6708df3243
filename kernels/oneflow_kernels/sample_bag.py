"""Tokens drawn from the vocabulary distributions of slots, without their logits."""

# Shapes: F slots, D trunk width, v of the vocabulary.

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from oneflow_kernels.fused_logits import noisy_best_token
from oneflow_kernels.vocabulary_part import WHOLE, VocabularyPart, begin_gather, finish

LEAST_TEMPERATURE = 1e-30  # logits up to 1e8 divided by it are finite in float32; the likeliest token wins long before


def sample_bag(
    hidden: Float[Tensor, "F D"],
    weight: Float[Tensor, "v D"],
    noise_key: Int64[Tensor, "F"],
    temperature: float,
    limit: int | None = None,
    *,
    part: VocabularyPart = WHOLE,
) -> Int64[Tensor, "F"]:
    """A token for each slot, with the probability that a softmax gives it, by the largest of noisy logits.

        z[s]     = weight @ hidden[s]
        token[s] = argmax over t < limit of z[s, t] / temperature + gumbel(noise_key[s], t)
                 ~ softmax(z[s, :limit] / temperature)

    Args:
        hidden: one row per slot.
        weight: same dtype; the unembedding, or the part of it that this rank has.
        noise_key: any 64 bits; a slot's token depends on nothing else but its logits. Draw one for each token.
        temperature: at least LEAST_TEMPERATURE.
        limit: tokens from here on are never drawn; None draws from all of them.
        part: with several ranks, all of them call alike; only their best tokens travel, and all get the same ones.

    Raises:
        ValueError: the dtypes differ, the temperature is too low, or the limit is not positive.

    Numerics: products, sums and noise in float32 (float64 of float64 operands). Deterministic; of equally good tokens
    the lowest.
    Source: Gumbel, Statistical theory of extreme values (1954); arXiv:1411.0030.
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}; cast one of them")
    limit = part.size * len(weight) if limit is None else limit
    if not temperature >= LEAST_TEMPERATURE:
        raise ValueError(f"temperature: {temperature} must be at least {LEAST_TEMPERATURE:g}")
    if not limit > 0:
        raise ValueError(f"limit: {limit} must be positive")
    hidden, weight = hidden.contiguous(), weight.contiguous()
    value, token = noisy_best_token(hidden, weight, noise_key, float(temperature), part.first_token, limit)
    value, token = (finish(begin_gather(x, part), part) for x in (value, token))
    return lowest_best(value, token)


def lowest_best(value: Float[Tensor, "k F"], token: Int64[Tensor, "k F"]) -> Int64[Tensor, "F"]:
    """Of k candidates the token with the largest value."""
    is_best = value == value.amax(0)
    return torch.where(is_best, token, torch.iinfo(torch.int64).max).amin(0)
