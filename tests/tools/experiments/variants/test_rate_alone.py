from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.data.packing import pack
from tests.noising import with_bags
from tests.tools.experiments.variants.heads import HEADS, Maker, batch_of, best_rate, chances, losses_of
from tools.experiments.toys import canvas_of, predict


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


def test_chances_to_fire_in_a_quarter_of_the_time(replaced: Callable[[str], None]) -> None:
    """Of gates .5, .2, .8, 0 and rates .2, 2, 5, 1, with q = 1/4."""
    replaced("rate_alone")
    assert chances(canvas_of("abb", 0.0), predict(HEADS), 4) == pytest.approx([0.05, 0.5, 1.0, 0.25], abs=1e-6)
