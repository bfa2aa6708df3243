"""The entry point: what it refuses, and that it computes what `reference` defines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oneflow_kernels.bag_cross_entropy import bag_cross_entropy, bag_scores


@pytest.mark.parametrize("function", [bag_cross_entropy, bag_scores])
def test_dtypes_must_agree(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError) as error:
        function(torch.zeros(2, 3), torch.zeros(4, 3).bfloat16(), torch.tensor([0]), torch.tensor([1]))
    assert str(error.value) == "hidden is torch.float32 but weight is torch.bfloat16; cast one of them"


def test_zero_weights_mean_a_uniform_distribution() -> None:
    nll = bag_cross_entropy(torch.randn(3, 4), torch.zeros(7, 4), torch.tensor([0, 3, 6]), torch.tensor([0, 0, 2]))
    torch.testing.assert_close(nll, torch.full((3,), 7.0).log())


def test_the_tokens_of_a_slot_share_one_distribution() -> None:
    """exp(-nll) over the whole vocabulary sums to one."""
    hidden, weight = torch.randn(1, 4), torch.randn(9, 4)
    nll = bag_cross_entropy(hidden, weight, torch.arange(9), torch.zeros(9, dtype=torch.int64))
    assert (-nll).exp().sum().item() == pytest.approx(1.0, rel=1e-5)


def test_empty_bags_give_an_empty_result_and_zero_gradients() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    nll = bag_cross_entropy(hidden, weight, nothing, nothing)
    assert nll.shape == (0,)
    for grad in torch.autograd.grad(nll.sum(), (hidden, weight)):
        assert (grad == 0.0).all()


def test_two_halves_of_a_vocabulary_know_the_cross_entropy_together() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(10, 4)
    bag_tokens, bag_slot = torch.tensor([0, 9, 5]), torch.tensor([0, 0, 2])
    halves = [bag_scores(hidden, weight[n : n + 5], bag_tokens - n, bag_slot) for n in (0, 5)]
    logsumexp, target = torch.stack(halves).unbind(1)
    expected = bag_cross_entropy(hidden, weight, bag_tokens, bag_slot)
    torch.testing.assert_close(logsumexp.logsumexp(0) - target.sum(0), expected)


def test_cross_entropy_is_in_nats() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log1p()  # probabilities 1/5 and 4/5
    nll = bag_cross_entropy(hidden, weight, torch.tensor([0, 1]), torch.tensor([0, 0]))
    torch.testing.assert_close((-nll).exp(), torch.tensor([0.2, 0.8]))
