"""Variants that learn other rates: where their losses are least, and which slots fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist import training, validation
from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Losses, NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.writers import insertion
from tests.noising import with_bags
from tools.experiments.toys import LINEAR, canvas_of, predict, settings_of
from tools.experiments.variants.truncated import log_some_prob

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


@pytest.mark.parametrize(
    ("sizes", "rate"),
    [
        ([1] * 19 + [2], 0.098),
        ([1, 1, 1, 1, 2], 0.376),
        ([1, 2], 0.874),
        ([1, 2, 3], 1.594),
        ([3, 3], 2.821),
        ([0, 0, 3, 0, 3], 2.821),
    ],
)
def test_the_truncated_likelihood_ends_below_the_mean(
    sizes: list[int], rate: float, replaced: Callable[[str], None], make_noisy: Maker, config: Config
) -> None:
    """Means of 1.05, 1.2, 1.5, 2 and 3 of slots that miss something; those that miss nothing have no say."""
    replaced("truncated_clamped")
    assert best_rate(batch_of(make_noisy, sizes), config) == pytest.approx(rate, abs=6e-4)


def test_of_slots_that_miss_one_token_the_truncated_rate_falls_without_end(
    replaced: Callable[[str], None], make_noisy: Maker, config: Config
) -> None:
    replaced("truncated")
    batch = batch_of(make_noisy, [1, 1])
    rates = [losses_of(batch, config, torch.tensor(0.0), torch.tensor(at)).rate.item() for at in (0.0, -4.0, -8.0)]
    assert rates == sorted(rates, reverse=True)
    assert slope(batch, config, -4.9) > slope(batch, config, -5.1) > 0.0
    assert torch.isfinite(losses_of(batch, config, torch.tensor(0.0), torch.tensor(-200.0)).stack()).all()


def test_the_chance_of_some_is_exact_on_both_sides_of_the_series() -> None:
    log_rate = torch.linspace(-12.0, 3.0, 301)
    expected = torch.log(-torch.expm1(-log_rate.double().exp()))
    torch.testing.assert_close(log_some_prob(log_rate).double(), expected, atol=2e-6, rtol=1e-6)


def test_total_holds_the_truncated_rate_and_the_gate_stays(
    replaced: Callable[[str], None], make_noisy: Maker, config: Config
) -> None:
    batch = batch_of(make_noisy, [0, 1, 2])
    before = losses_of(batch, config, torch.tensor(0.3), torch.tensor(0.1))
    replaced("truncated")
    assert validation.compute_losses is training.compute_losses
    after = losses_of(batch, config, torch.tensor(0.3), torch.tensor(0.1))
    assert after.zero == before.zero
    more = 2.0 / 3.0 * np.log1p(-np.exp(-np.exp(0.1)))  # of two slots in three
    assert (after.rate - before.rate).item() == pytest.approx(more, rel=1e-5)
    assert (after.total - before.total).item() == pytest.approx(more, rel=1e-5)


@pytest.mark.parametrize(("sizes", "rate"), [([0, 0, 1, 2, 0], 0.6), ([1, 1], 1.0), ([0, 0, 0, 1], 0.25)])
def test_the_rate_alone_is_learnt_of_all_open_slots_and_the_gate_not_at_all(
    sizes: list[int], rate: float, replaced: Callable[[str], None], make_noisy: Maker, config: Config
) -> None:
    replaced("rate_alone")
    batch = batch_of(make_noisy, sizes)
    assert best_rate(batch, config) == pytest.approx(rate, rel=1e-4)
    zero_logit = torch.tensor(0.7, requires_grad=True)
    losses = losses_of(batch, config, zero_logit, torch.tensor(0.0))
    losses.total.backward()
    assert losses.zero == 0.0
    assert zero_logit.grad == 0.0  # not None: an optimizer steps over every weight


def test_closed_slots_do_not_teach_the_rate_alone(
    replaced: Callable[[str], None], make_noisy: Maker, config: Config
) -> None:
    replaced("rate_alone")
    noisy = make_noisy(np.random.default_rng(0), num_tokens=4, num_images=0, num_bag_tokens=2)
    is_open = np.array([False, True, True, False])
    batch = pack([replace(with_bags(noisy, [1, 1]), is_open=is_open)], None, "batch")
    assert best_rate(batch, config) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("rate_alone", [0.05, 0.5, 1.0, 0.25]),
        ("truncated", [0.5 * 0.05, 0.2 * 0.5, 0.8, 0.0]),
        ("truncated_clamped", [0.5 * 0.25, 0.2 * 0.5, 0.8, 0.0]),
    ],
)
def test_chances_to_fire_in_a_quarter_of_the_time(
    variant: str, expected: list[float], replaced: Callable[[str], None]
) -> None:
    """Of gates .5, .2, .8, 0 and rates .2, 2, 5, 1, with q = 1/4."""
    replaced(variant)
    assert chances(canvas_of("abb", 0.0), predict(HEADS), 4) == pytest.approx(expected, abs=1e-6)
