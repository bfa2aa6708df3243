"""What heads that know no time would say if they did: how late it is tells how much can be missing."""

# Shapes: n open slots of one document, k possible numbers of missing tokens.

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

NUM_ROUNDS = 3
MOST_MISSING = 4096  # in one slot


def at_time(
    filled_prob: Float[np.ndarray, "n"], rate: Float[np.ndarray, "n"], num_written: int, keep_prob: float, share: float
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The chance that a slot misses something, and how much it misses then, at a time that the heads do not know.

    Averaged over a uniform time, m tokens there and K missing have the weight B(m + 1, K + 1); at the keep probability
    kappa they have kappa^m (1 - kappa)^K. So with K' expected to be missing in the other slots, the chance that one
    misses k is multiplied by c(K' + k), up to a factor:

        log c(K) = share (K log(1 - kappa) + log Gamma(m + K + 2) - log Gamma(K + 1))

    which says something of K' in turn: a few rounds make both agree. Given that something is missing, its number is
    taken as geometric.

    Args:
        share: of the correction; 1 where slots tell nothing of each other, and less the better the heads know the
            length as a whole, which they say slot by slot: 0 where it is fixed.

    Source: docs/decisions/0025.
    """
    most = min(MOST_MISSING, 8 * math.ceil(rate.max(initial=1.0)) + 4)
    number = torch.arange(most + 1, dtype=torch.float64)
    prob = _distribution(torch.from_numpy(filled_prob).double(), torch.from_numpy(rate).double(), number)
    mean, corrected = prob @ number, prob
    for _ in range(NUM_ROUNDS):
        others = (mean.sum() - mean)[:, None]
        change = _log_weight(others + number, num_written, keep_prob) - _log_weight(others, num_written, keep_prob)
        corrected = (prob.log() + share * change).softmax(-1)
        mean = 0.5 * (mean + corrected @ number)
    filled = 1.0 - corrected[:, 0]
    size = corrected @ number / filled.clamp(min=1e-30)
    return filled.numpy(), size.clamp(min=1.0).numpy()


def _distribution(filled_prob: Tensor, rate: Tensor, number: Tensor) -> Float64[Tensor, "n k"]:
    """Of the number that each slot misses: none, or a geometric one."""
    end = 1.0 / rate.clamp(min=1.0)[:, None]
    some = filled_prob[:, None] * end * (1.0 - end) ** (number - 1.0).clamp(min=0.0)
    return torch.where(number == 0.0, 1.0 - filled_prob[:, None], some)


def _log_weight(total: Tensor, num_written: int, keep_prob: float) -> Tensor:
    left = math.log(max(1.0 - keep_prob, 1e-12))
    return total * left + torch.lgamma(num_written + total + 2.0) - torch.lgamma(total + 1.0)
