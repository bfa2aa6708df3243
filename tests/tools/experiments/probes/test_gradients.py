from __future__ import annotations

import pytest
import torch

from tools.experiments.probes.gradients import measure, relative_variance
from tools.experiments.reading import Probe
from tools.experiments.rows import Subject

BAGS = {"sampled": ('flow.bags="sampled"',), "averaged": ('flow.bags="averaged"',)}


def test_averaged_bags_have_less_noise_at_the_same_weights(subject: Subject) -> None:
    sampled, averaged = measure(subject, Probe(kind="gradients", title="", documents=4, ways=BAGS))
    assert (sampled.way, averaged.way) == ("sampled", "averaged")
    assert 0.0 < averaged.value < sampled.value


def test_noise_is_the_variance_over_the_squared_mean() -> None:
    """Each of 4,000 values is normal, of mean 2 and variance 9."""
    generator = torch.Generator().manual_seed(0)
    draws = (2.0 + 3.0 * torch.randn(4000, generator=generator, dtype=torch.float64) for _ in range(12))
    assert relative_variance(draws) == pytest.approx(9.0 / 4.0, rel=0.05)
