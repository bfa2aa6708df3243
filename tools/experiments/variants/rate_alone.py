"""No gate: the rate alone says how many tokens a slot misses, none among them.

    training   rate - k log rate        per open slot, the likelihood of a Poisson number of mean rate; no zero loss
    sampling   a slot fires with chance min(1, q rate)

The zero head is there and learns nothing.

Source: arXiv:2506.09018, whose edits have a rate and no gate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Losses, PackedBatch, Prediction
from oneflow_dist.flow import losses
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers import insertion
from tools.experiments.firing import log_rate_of, with_rate

SURELY_FILLED = -1e4  # a logit whose loss is 0 to the bit

_compute_losses = losses.compute_losses
_draw_fires = insertion.draw_fires


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return {
        "oneflow_dist.training:compute_losses": compute_losses,
        "oneflow_dist.validation:compute_losses": compute_losses,
        "oneflow_dist.writers.insertion:draw_fires": draw_fires,
    }


def compute_losses(prediction: Prediction, batch: PackedBatch, counts: Counts, config: Config) -> Losses:
    """The project's losses as if every open slot were filled, of which the gate is certain."""
    filled_prob = torch.where(batch.slot_weight > 0.0, 1.0, batch.filled_prob)
    return _compute_losses(gateless(prediction), replace(batch, filled_prob=filled_prob), counts, config)


def gateless(prediction: Prediction) -> Prediction:
    """With a gate that is sure of every slot; its gradients are 0 rather than absent."""
    if prediction.zero_logit is None:
        return prediction
    return replace(prediction, zero_logit=0.0 * prediction.zero_logit + SURELY_FILLED)


def draw_fires(
    canvases: list[Canvas], prediction: Prediction, sampling: SamplingConfig, schedule: KeepSchedule
) -> list[Bool[np.ndarray, "n"]]:
    """The sampler's, whatever the gate says."""
    return _draw_fires(canvases, by_rate(prediction), sampling, schedule)


def by_rate(prediction: Prediction) -> Prediction:
    """Heads with which the sampler lets a slot fire with chance min(1, q rate)."""
    log_rate = log_rate_of(prediction)
    return with_rate(prediction, torch.zeros_like(log_rate), log_rate)
