from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oneflow_kernels import reference_bag

BAGS = {
    "usual": [0, 0, 2, 3, 3, 3, 6],
    "every slot": list(range(7)),
    "one token": [4],
    "bag of 500": [2] * 500,
    "none": [],
}
every_bag = pytest.mark.parametrize("bag_slot", BAGS.values(), ids=BAGS)


def bag_case(bag_slot: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seven slots, a vocabulary of eleven."""
    generator = torch.Generator().manual_seed(len(bag_slot))
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    bag_tokens = torch.randint(11, (len(bag_slot),), generator=generator)
    return hidden, weight, bag_tokens, torch.tensor(bag_slot, dtype=torch.int64)


@every_bag
def test_bag_cross_entropy_is_that_of_the_distribution_of_the_slot(bag_slot: list[int]) -> None:
    hidden, weight, bag_tokens, slots = bag_case(bag_slot)
    bag_weight = torch.rand(len(bag_slot), generator=torch.Generator().manual_seed(0))
    loss = reference_bag.bag_cross_entropy(hidden, weight, bag_tokens, slots, bag_weight)
    probs = (hidden @ weight.T).softmax(-1)
    torch.testing.assert_close(loss, -(bag_weight * probs[slots, bag_tokens].log()).sum(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bag_cross_entropy_sums_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, *bags = bag_case(BAGS["usual"], dtype)
    bag_weight = torch.ones(len(bags[0]))
    loss = reference_bag.bag_cross_entropy(hidden, weight, *bags, bag_weight)
    expected = reference_bag.bag_cross_entropy(hidden.double(), weight.double(), *bags, bag_weight)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("num_slots", [0, 1, 5000])
def test_logsumexp_is_that_of_all_logits(num_slots: int) -> None:
    hidden, weight = torch.randn(num_slots, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64)
    torch.testing.assert_close(reference_bag.logsumexp_of_logits(hidden, weight), (hidden @ weight.T).logsumexp(-1))


# Noise.


def test_noise_depends_on_key_and_token_alone() -> None:
    key, token = torch.tensor([0, 7, -(2**63), 2**63 - 1, 2**32]), torch.arange(100)
    noise = reference_bag.gumbel(key, token)
    assert torch.equal(reference_bag.gumbel(key[1:3], token[13:40]), noise[1:3, 13:40])
    assert len(noise.unique()) > 495  # of 500: no two keys and no two tokens share theirs


def test_noise_has_the_distribution_of_gumbel() -> None:
    """exp(-exp(-x)) is uniform: Kolmogorov's distance of a million values, and the mean and variance."""
    noise = reference_bag.gumbel(torch.arange(1000), torch.arange(1000)).double().flatten()
    uniform = (-(-noise).exp()).exp().sort().values
    even = (torch.arange(len(uniform)) + 0.5) / len(uniform)
    assert (uniform - even).abs().max() < 1.95 / len(uniform) ** 0.5  # one in a thousand
    assert noise.mean().item() == pytest.approx(0.5772157, abs=0.005)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.01)


def test_neighbours_have_noise_of_their_own() -> None:
    noise = reference_bag.gumbel(torch.arange(500), torch.arange(500)).double()
    noise = (noise - noise.mean()) / noise.std()
    for step in (1, 2, 4, 32, 128):
        for a, b in ((noise[:, step:], noise[:, :-step]), (noise[step:], noise[:-step])):
            assert (a * b).mean().abs() < 4.0 / a.numel() ** 0.5


def test_noise_is_finite() -> None:
    """Also where the word is all ones or all zeros, of which a few billion would have to be drawn."""
    words = torch.tensor([0, 1, 2**32 - 1, 2**32 - 2])
    noise = reference_bag.gumbel_of_words(words)
    assert torch.isfinite(noise).all()
    assert noise[0] > 22.0
    assert noise[0] - noise[1] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
