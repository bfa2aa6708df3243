"""Heads that say the same of every slot, what they learn, and how often their slots fire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneflow_dist import training
from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Losses, NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.writers import insertion
from tests.noising import with_bags
from tools.experiments.toys import LINEAR, settings_of

Maker = Callable[..., NoisySample]
HEADS = [(0.5, 0.1, {"a": 1.0}), (0.8, 0.4, {"a": 1.0}), (0.2, 4.0, {"a": 1.0}), (1.0, 0.0, {})]  # rates .2, 2, 5, 1


def batch_of(make_noisy: Maker, sizes: list[int]) -> PackedBatch:
    """One text whose slots miss so many tokens."""
    noisy = make_noisy(np.random.default_rng(0), num_tokens=len(sizes), num_images=0, num_bag_tokens=sum(sizes))
    return pack([with_bags(noisy, np.repeat(np.arange(len(sizes)), sizes))], None, "batch")


def losses_of(batch: PackedBatch, config: Config, zero_logit: Tensor, log_rate: Tensor) -> Losses:
    """What training makes of heads that say the same of every slot."""
    size = len(batch.tokens)
    velocity = tuple(pieces.velocity for pieces in batch.pieces)
    heads: dict[str, Any] = {"zero_logit": zero_logit.expand(size), "log_rate": log_rate.expand(size)}
    said = Prediction(**heads, bag_loss=torch.zeros(()), velocity=velocity, slot_hidden=torch.zeros(size, 1))
    return training.compute_losses(said, batch, batch.counts, config)


def slope(batch: PackedBatch, config: Config, log_rate: float) -> float:
    """Derivative of the total loss by the logarithm of the rate."""
    rate = torch.tensor(log_rate, requires_grad=True)
    losses_of(batch, config, torch.tensor(0.0), rate).total.backward()
    assert rate.grad is not None
    return rate.grad.item()


def best_rate(batch: PackedBatch, config: Config) -> float:
    """Where the loss is least, found by halving."""
    low, high = -10.0, 5.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(batch, config, middle) < 0.0 else (low, middle)
    return float(np.exp(low))


def chances(canvas: Canvas, prediction: Prediction, steps: int) -> list[float]:
    """Of its slots to fire in the first of so many steps."""
    own = settings_of(steps, time_power=1.0, firing="independent")
    insertion.draw_fires([canvas], prediction, own, LINEAR)
    return canvas.rng.prob.tolist()  # type: ignore[attr-defined]
