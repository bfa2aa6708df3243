"""Chances that slots fire which the sampler does not have by itself, told in the heads' own terms."""

# Shapes: N slots.

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from oneflow_dist.containers import Prediction

LEAST_LOGIT = -80.0  # stands for a slot that surely fires


def with_rate(prediction: Prediction, log_filled: Float[Tensor, "N"], log_rate: Float[Tensor, "N"]) -> Prediction:
    """Heads of which the sampler makes the chance `filled * min(1, q * rate)`, whatever the rate.

    The sampler itself takes no rate below 1. The gate takes it instead:

        filled * min(1, q rate) = (filled min(1, rate)) min(1, q max(1, rate))        for all q in [0, 1]

    Args:
        log_filled: logarithm of the chance that a token is missing.
        log_rate: logarithm of the number of tokens that are missing then.
    """
    log_gate = log_filled.double() + log_rate.double().clamp(max=0.0)
    odds = (-log_gate.expm1()).clamp(min=0.0).log() - log_gate  # of nothing: log((1 - gate) / gate)
    return replace(prediction, zero_logit=odds.clamp(min=LEAST_LOGIT).float(), log_rate=log_rate.clamp(min=0.0).float())


def log_filled_of(prediction: Prediction) -> Float[Tensor, "N"]:
    """Logarithm of 1 - pi.

    Raises:
        ValueError: the model has no insertion heads.
    """
    if prediction.zero_logit is None:
        raise ValueError('a model without insertion heads; take one whose objective.kind is "insertion"')
    return F.logsigmoid(-prediction.zero_logit.double())


def log_rate_of(prediction: Prediction) -> Float[Tensor, "N"]:
    """Logarithm of what the rate head says.

    Raises:
        ValueError: the model has no insertion heads.
    """
    if prediction.log_rate is None:
        raise ValueError('a model without insertion heads; take one whose objective.kind is "insertion"')
    return prediction.log_rate.double()
