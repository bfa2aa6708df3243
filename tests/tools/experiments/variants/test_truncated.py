from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from oneflow_dist import training, validation
from oneflow_dist.config import Config
from tests.tools.experiments.variants.heads import HEADS, Maker, batch_of, best_rate, chances, losses_of, slope
from tools.experiments.toys import canvas_of, predict
from tools.experiments.variants.truncated import log_some_prob


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


def test_chances_to_fire_in_a_quarter_of_the_time(replaced: Callable[[str], None]) -> None:
    """Of gates .5, .2, .8, 0 and rates .2, 2, 5, 1, with q = 1/4."""
    replaced("truncated")
    assert chances(canvas_of("abb", 0.0), predict(HEADS), 4) == pytest.approx(
        [0.5 * 0.05, 0.2 * 0.5, 0.8, 0.0], abs=1e-6
    )
