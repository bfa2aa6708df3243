"""The trap of the zero-truncated likelihood: the rate of a slot that misses exactly one token is driven to 0.

    training   rate - k log rate + log(1 - exp(-rate))        per slot of k > 0, beside the gate
    sampling   a slot fires with chance (1 - pi) min(1, q rate), whatever the rate

A number that is k on average, given that it is not 0, has the truncated likelihood's optimum at the rate with
k = rate / (1 - exp(-rate)), which is less: .376 for 1.2, and 0 for 1, so that the last tokens never come. The
project's sampler takes no rate below 1, which hides the trap; here it takes what the head says. `truncated_clamped` is
the same training with the sampler as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Losses, PackedBatch, Prediction
from oneflow_dist.flow import losses
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers import insertion
from tools.experiments.firing import log_filled_of, log_rate_of, with_rate

SMALL_LOG_RATE = -5.0  # below it a series is exact to float32

_compute_losses = losses.compute_losses
_draw_fires = insertion.draw_fires


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return training_replacements() | {"oneflow_dist.writers.insertion:draw_fires": draw_fires}


def training_replacements() -> dict[str, object]:
    """The losses alone."""
    return {
        "oneflow_dist.training:compute_losses": compute_losses,
        "oneflow_dist.validation:compute_losses": compute_losses,
    }


def compute_losses(prediction: Prediction, batch: PackedBatch, counts: Counts, config: Config) -> Losses:
    """The project's losses, that of the rate truncated at zero."""
    found = _compute_losses(prediction, batch, counts, config)
    if prediction.log_rate is None:
        return found
    is_filled = (batch.slot_weight > 0.0) & (batch.filled_prob > 0.0)
    log_rate = losses.where_scored(is_filled, prediction.log_rate)
    denominator = max(1, counts.open_slots if config.flow.normalize == "batch" else counts.text_sequences)
    more = (batch.slot_weight * batch.filled_prob * log_some_prob(log_rate)).sum() / denominator
    return replace(found, rate=found.rate + more, total=found.total + more)


def log_some_prob(log_rate: Float32[Tensor, "N"]) -> Float32[Tensor, "N"]:
    """log(1 - exp(-rate)): of a Poisson number that it is not 0.

    Numerics: float32; below exp(SMALL_LOG_RATE) log rate - rate / 2 + rate^2 / 24, for any logarithm that is finite.
    """
    rate = log_rate.exp()
    series = log_rate - 0.5 * rate + rate.square() / 24.0
    exact = (-torch.expm1(-log_rate.clamp(min=SMALL_LOG_RATE).exp())).log()
    return torch.where(log_rate < SMALL_LOG_RATE, series, exact)


def draw_fires(
    canvases: list[Canvas], prediction: Prediction, sampling: SamplingConfig, schedule: KeepSchedule
) -> list[Bool[np.ndarray, "n"]]:
    """The sampler's, with rates below 1 as they are."""
    return _draw_fires(canvases, unclamped(prediction), sampling, schedule)


def unclamped(prediction: Prediction) -> Prediction:
    """Heads with which the sampler lets a slot fire with chance (1 - pi) min(1, q rate) for rates below 1, too."""
    return with_rate(prediction, log_filled_of(prediction), log_rate_of(prediction))
