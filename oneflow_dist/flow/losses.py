"""What the model is asked: is something missing here, how much, what, and where do the pieces flow?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Losses, PackedBatch, Prediction


def compute_losses(prediction: Prediction, batch: PackedBatch, counts: Counts, config: Config) -> Losses:
    """This batch's part of the losses of a whole step: summed over the ranks and microbatches of a step they are means.

        zero      BCE(pi, P(k = 0))                      per open slot
        rate      P(k > 0) rate - E[k] log rate          per open slot
        bag       sum over the bag of weight * -log Q    per open slot; the model has made this sum
        velocity  (v - (patch - noise))^2                per element of a moving piece, for each modality by itself
        total     zero + rate + bag + sum of loss_weight * velocity

    Of a bag that is known P(k > 0) is 0 or 1, E[k] = k, and all weights are 1. Of the baselines, whose tokens have
    their places, there is the third alone: an open slot is a token that is learnt.

    Args:
        counts: of the whole step, over all ranks and microbatches.
        config: `flow.normalize` "batch" divides sums over slots by the open slots of the step; "paper" takes the mean
            over the slots of a sample (the batch says what a slot weighs), then over samples, which has the same
            optimum but heavy tails: one sample of few slots and large bags can outweigh a thousand others.

    Numerics: float32 sums. The hazard does not weigh the text losses; weighed, time-free heads are degenerate.
    Source: arXiv:2510.03506 Eq. 7 (text) and 9 (pieces).
    """
    denominator = max(1, counts.open_slots if config.flow.normalize == "batch" else counts.text_sequences)
    slot_weight, filled_prob = batch.slot_weight, batch.filled_prob
    is_open = slot_weight > 0.0
    bag = prediction.bag_loss / denominator
    zero, rate = torch.zeros_like(bag), torch.zeros_like(bag)
    if prediction.zero_logit is not None and prediction.log_rate is not None:
        zero_logit = where_scored(is_open, prediction.zero_logit)
        log_rate = where_scored(is_open & (filled_prob > 0.0), prediction.log_rate)
        zero_nll = F.binary_cross_entropy_with_logits(zero_logit, 1.0 - filled_prob, reduction="none")
        rate_nll = filled_prob * log_rate.exp() - batch.missing_count * log_rate
        zero = (slot_weight * zero_nll).sum() / denominator
        rate = (slot_weight * rate_nll).sum() / denominator
    total = zero + rate + bag
    velocities = []
    own = config.modality.values(), prediction.velocity, batch.pieces, counts.moving_elements
    for modality, velocity, pieces, num_elements in zip(*own, strict=True):
        is_moving = pieces.patch_weight > 0.0
        squares = where_scored(is_moving[:, None], velocity - pieces.velocity).square().sum(dim=1)
        velocities.append((pieces.patch_weight * squares).sum() / max(1, num_elements))
        total = total + modality.loss_weight * velocities[-1]
    velocity = torch.stack(velocities) if velocities else total.new_zeros(0)
    return Losses(zero=zero, rate=rate, bag=bag, velocity=velocity, total=total)


def where_scored(is_scored: Bool[Tensor, "*#n"], x: Float32[Tensor, "*#n"]) -> Float32[Tensor, "..."]:
    """`x`, and 0 where it is not scored: nothing holds it finite there, and 0 times infinity is NaN, backward too."""
    return torch.where(is_scored, x, 0.0)


def are_finite(losses: Losses) -> bool:
    """Whether no loss is NaN or infinite."""
    return bool(torch.isfinite(losses.stack()).all())
