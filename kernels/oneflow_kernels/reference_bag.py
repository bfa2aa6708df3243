"""Plain PyTorch definitions of what the kernels over bags and vocabularies compute."""

# Shapes: n slots of a chunk or group, m = n + 1, B bag tokens, N slots, D trunk width, v of the vocabulary.

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from oneflow_kernels.philox import MASK, philox


def bag_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "v D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
    bag_weight: Float32[Tensor, "B"],
) -> Float[Tensor, ""]:
    """The weighted negative log-likelihood of the bag tokens, of all logits at once.

        z = hidden @ weight.T           loss = sum over b of bag_weight[b] (logsumexp(z[s]) - z[s, bag_tokens[b]])

    with s = bag_slot[b]. In float32, or in float64 where the operands are.
    """
    logits = _upcast(hidden) @ _upcast(weight).T
    nll = logits.logsumexp(-1)[bag_slot] - logits[bag_slot, bag_tokens]
    return (bag_weight * nll).sum()


def softmax_(
    logits: Float[Tensor, "n v"],
    probs: Float[Tensor, "n v"],
    target: Float[Tensor, "B"],
    bag_tokens: Int64[Tensor, "B"],
    bag_weight: Float[Tensor, "B"],
    starts: Int64[Tensor, "m"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """See `bag_operations.softmax_`."""
    pairs, row = _pairs_of(starts)
    tokens = bag_tokens[pairs]
    is_own = (tokens >= 0) & (tokens < logits.shape[1])
    target[pairs] = torch.where(is_own, logits[row, tokens.where(is_own, 0)], 0.0)
    mass = logits.new_zeros(len(logits)).index_add_(0, row, bag_weight[pairs].to(logits.dtype))
    base = logits.amax(-1)
    unrounded = (logits - base[:, None]).exp_()
    probs.copy_(unrounded)
    return base + unrounded.sum(-1).log(), base, mass


def one_hot_(
    probs: Float[Tensor, "n v"],
    shrink: Float[Tensor, "n"],
    base: Float[Tensor, "n"],
    lse: Float[Tensor, "n"],
    mass: Float[Tensor, "n"],
    target: Float[Tensor, "B"],
    bag_tokens: Int64[Tensor, "B"],
    bag_weight: Float[Tensor, "B"],
    row: Int64[Tensor, "B"],
    starts: Int64[Tensor, "m"],
) -> None:
    """See `bag_operations.one_hot_`."""
    shrinks = (shrink < 1.0).nonzero().squeeze(1)
    probs[shrinks] = (probs[shrinks] * shrink[shrinks, None]).to(probs.dtype)
    pairs, _ = _pairs_of(starts)
    row, tokens, weight, target = row[pairs], bag_tokens[pairs], bag_weight[pairs], target[pairs]
    is_known = (tokens >= 0) & (tokens < probs.shape[1]) & (mass[row] > 0.0)
    row, tokens, weight, target = (x[is_known] for x in (row, tokens, weight, target))
    places, place = (row * probs.shape[1] + tokens).unique(return_inverse=True)
    total = mass.new_zeros(len(places)).index_add_(0, place, weight.to(mass.dtype))
    one_hot = (lse - base)[row].exp() * total[place] / mass[row]
    probs[row, tokens] = ((target - base[row]).exp() - one_hot).to(probs.dtype)


def bag_token_logits(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "v D"],
    bag_tokens: Int64[Tensor, "B"],
    bag_slot: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """See `bag_operations.bag_token_logits`."""
    is_own = (bag_tokens >= 0) & (bag_tokens < len(weight))
    own = (_upcast(hidden[bag_slot]) * _upcast(weight[bag_tokens.where(is_own, 0)])).sum(-1)
    return torch.where(is_own, own, 0.0)


def _pairs_of(starts: Int64[Tensor, "m"]) -> tuple[slice, Int64[Tensor, "P"]]:
    """The bag tokens of a chunk, and the row of each."""
    row = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    first = int(starts[0])
    return slice(first, first + len(row)), row


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


CHUNK_SLOTS = 2048


def logsumexp_of_logits(hidden: Float[Tensor, "F D"], weight: Float[Tensor, "v D"]) -> Float[Tensor, "F"]:
    """See `fused_logits.logsumexp_of_logits`; the logits of CHUNK_SLOTS rows at a time."""
    weight = _upcast(weight)
    parts = [(_upcast(rows) @ weight.T).logsumexp(-1) for rows in hidden.split(CHUNK_SLOTS)]
    return torch.cat(parts) if len(hidden) else weight.new_empty(0)


def noisy_best_token(
    hidden: Float[Tensor, "F D"],
    weight: Float[Tensor, "v D"],
    noise_key: Int64[Tensor, "F"],
    temperature: float,
    first_token: int,
    limit: int,
) -> tuple[Float[Tensor, "F"], Int64[Tensor, "F"]]:
    """See `fused_logits.noisy_best_token`; from all logits at once."""
    weight = _upcast(weight)
    logits = _upcast(hidden) @ weight.T
    token = torch.arange(first_token, first_token + len(weight), device=weight.device)
    noisy = logits / temperature + gumbel(noise_key, token)
    best = noisy.masked_fill(token >= limit, -torch.inf).max(-1)
    return best.values, best.indices + first_token


def gumbel(noise_key: Int64[Tensor, "F"], token: Int64[Tensor, "v"]) -> Float[Tensor, "F v"]:
    """Standard Gumbel noise of each (key, token).

        noise = -log(-log(1 - u))        u = (word + 1/2) / 2^32

    `word` is word token % 4 of Philox under the key, at the counter token // 4. Near 0, where the largest noise comes
    from, u has 32 bits.
    """
    key, zero = noise_key[:, None], torch.zeros_like(token)
    words = torch.stack(philox((token // 4, zero, zero, zero), (key & MASK, key >> 32 & MASK)))
    return gumbel_of_words(words.gather(0, (token % 4).expand(1, len(key), -1)).squeeze(0))


def gumbel_of_words(word: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Noise of random 32-bit words, of which each is as likely; see `gumbel`."""
    u = (word.float() * 2.0**-32 + 2.0**-33).clamp(max=1.0 - 2.0**-24)
    return -(-torch.log1p(-u)).log()
