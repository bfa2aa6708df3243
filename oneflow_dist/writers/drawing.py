"""Tokens drawn from what the model says of slots."""

# Shapes: F slots, f of them on this rank, V vocabulary, D width.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig

LOGIT_SLOTS = 512  # whose logits of the whole vocabulary are written at once, where some tokens are to be left out


def draw_tokens(
    model: OneFlow,
    slot_hidden: Float[Tensor, "F D"],
    generators: list[np.random.Generator],
    sampling: SamplingConfig,
    vocab_size: int,
) -> Int64[np.ndarray, "F"]:
    """A token for each slot that fires, from the generator of its document.

    Logits are written only where some of them are to be left out.

    Args:
        vocab_size: of the tokenizer; the model may have room for more tokens.
    """
    if not generators:
        return np.zeros(0, dtype=np.int64)
    if sampling.top_k == 0 and sampling.top_p >= 1.0:
        keys = np.array([rng.integers(2**63) for rng in generators], dtype=np.int64)
        noise_key = torch.from_numpy(keys).to(slot_hidden.device)
        return model.draw_tokens(slot_hidden, noise_key, sampling.temperature, vocab_size).cpu().numpy()
    draws = np.array([rng.random() for rng in generators])

    def draw(logits: Float32[Tensor, "f V"], own: Float[Tensor, "f"]) -> Int64[Tensor, "f"]:
        logits[:, vocab_size:] = -torch.inf
        return sample_tokens(logits, own, sampling.temperature, sampling.top_p, sampling.top_k)

    return for_slots(model, slot_hidden, draws, draw)


def probs_of(
    model: OneFlow, slot_hidden: Float[Tensor, "F D"], tokens: Int64[np.ndarray, "F"]
) -> Float[np.ndarray, "F"]:
    """Of each token, in the distribution of its slot."""

    def prob(logits: Float32[Tensor, "f V"], own: Int64[Tensor, "f"]) -> Float32[Tensor, "f"]:
        return (logits.gather(1, own[:, None]).squeeze(1) - logits.logsumexp(-1)).exp()

    return for_slots(model, slot_hidden, tokens, prob) if len(tokens) else np.zeros(0)


def for_slots(
    model: OneFlow,
    slot_hidden: Float[Tensor, "F D"],
    values: Shaped[np.ndarray, "F"],
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Shaped[np.ndarray, "F"]:
    """What comes of the logits of each slot and its value, written for LOGIT_SLOTS at once.

    Over a tensor axis each rank computes for some slots.
    """
    axis, found = model.axis, []
    for first in range(0, len(values), LOGIT_SLOTS):
        own = torch.from_numpy(values[first : first + LOGIT_SLOTS]).to(slot_hidden.device)
        padding = -len(own) % axis.size
        hidden = F.pad(slot_hidden[first : first + LOGIT_SLOTS], (0, 0, 0, padding))
        dealt = F.pad(own, (0, padding))[axis.local_slice(len(hidden))]
        found.append(axis.gather(compute(axis.deal_rows(model.bag_logits(hidden)), dealt))[: len(own)])
    return torch.cat(found).cpu().numpy()


def sample_tokens(
    logits: Float32[Tensor, "f V"], draws: Float[Tensor, "f"], temperature: float, top_p: float, top_k: int = 0
) -> Int64[Tensor, "f"]:
    """A token for each row of logits, by the inverse of its cumulative distribution at `draws` in [0, 1).

    Args:
        top_p: keep the fewest tokens whose probabilities reach this part of the sum, and those as likely as the last of
            them; of what top_k has left.
        top_k: keep this many of the likeliest tokens, and those as likely as the last of them; 0 keeps all.
    """
    probs = (logits.double() / temperature).softmax(-1)
    if top_k:
        floor = probs.topk(min(top_k, probs.shape[1])).values[:, -1:]
        probs = torch.where(probs >= floor, probs, 0.0)
    if top_p < 1.0:
        descending = probs.sort(-1, descending=True).values
        cumulative = descending.cumsum(-1)
        is_kept = F.pad(cumulative[:, :-1], (1, 0)) < top_p * cumulative[:, -1:]  # those before do not reach it
        floor = descending.where(is_kept, 1.0).amin(-1, keepdim=True)
        probs = torch.where(probs >= floor, probs, 0.0)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1]
    target = _below(draws.to(total) * total, total)
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)


def _below(x: Tensor, limit: Tensor) -> Tensor:
    """`x`, but less than `limit` even where rounding took it there."""
    return torch.minimum(x, torch.nextafter(limit, torch.zeros_like(limit)))
