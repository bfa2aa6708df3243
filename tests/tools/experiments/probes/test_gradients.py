from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Sample
from oneflow_dist.model.oneflow import OneFlow
from tools.experiments.probes.gradients import noise_of, relative_variance


def test_bags_are_averaged_where_tokens_repeat(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow], make_sample: Callable[..., Sample]
) -> None:
    """Of different tokens nothing is to be averaged: both have the same gradients to the bit."""
    noise = {}
    for tokens in ([5] * 8, list(range(8))):
        for bags in ("sampled", "averaged"):
            config = make_config(f"flow.bags={bags}", "flow.condition_dropout_prob=0")
            sample = make_sample([9, *tokens])
            noise[bags, tokens[0]] = noise_of(make_model(config), config, [sample], seed=0)
    assert noise["averaged", 5] != noise["sampled", 5]
    assert noise["averaged", 0] == noise["sampled", 0]


def test_noise_is_the_variance_over_the_squared_mean() -> None:
    """Each of 4,000 values is normal, of mean 2 and variance 9."""
    generator = torch.Generator().manual_seed(0)
    draws = (2.0 + 3.0 * torch.randn(4000, generator=generator, dtype=torch.float64) for _ in range(12))
    assert relative_variance(draws) == pytest.approx(9.0 / 4.0, rel=0.05)
