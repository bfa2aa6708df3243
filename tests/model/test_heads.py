from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from oneflow_dist.model.heads import InsertionHeads

WIDTH, VOCAB = 8, 11


def make_heads(time_conditioning: Literal["none", "token", "adaln"] = "none") -> InsertionHeads:
    torch.manual_seed(0)
    return InsertionHeads(WIDTH, 1e-5, time_conditioning)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def token_sequence() -> Tensor:
    return torch.tensor([0, 0, 1, 1, 1])


def test_unmodulated_heads_know_nothing_of_time(x: Tensor, token_sequence: Tensor) -> None:
    heads = make_heads()
    hidden = heads.slot_hidden(x, torch.randn(0, WIDTH), token_sequence)
    torch.testing.assert_close(hidden, nn.functional.rms_norm(x, (WIDTH,), eps=1e-5))


def test_modulated_heads_know_the_time_of_their_own_sequence(x: Tensor, token_sequence: Tensor) -> None:
    heads = make_heads("adaln")
    time = torch.randn(2, WIDTH)
    later = time.clone()
    later[1] += 1.0
    before, after = (heads.slot_hidden(x, t, token_sequence) for t in (time, later))
    assert torch.equal(before[:2], after[:2])
    assert not torch.isclose(before[2:], after[2:]).any(dim=1).all()


def test_modulation_scales_and_shifts_the_normed_slots(x: Tensor, token_sequence: Tensor) -> None:
    heads, time = make_heads("adaln"), torch.randn(2, WIDTH)
    assert heads.modulation is not None
    shift, scale = heads.modulation(time)
    expected = nn.functional.rms_norm(x, (WIDTH,), eps=1e-5) * scale[token_sequence] + shift[token_sequence]
    torch.testing.assert_close(heads.slot_hidden(x, time, token_sequence), expected)


def test_bag_losses_are_those_of_the_whole_distribution(x: Tensor) -> None:
    unembedding = torch.randn(VOCAB, WIDTH)
    bag_tokens, bag_slot = torch.tensor([3, 3, 0, 10]), torch.tensor([0, 0, 2, 4])
    bag_weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    _, _, loss = make_heads()(x, None, unembedding, bag_tokens, bag_slot, bag_weight, 3)
    log_probs = (x @ unembedding.T).log_softmax(-1)
    torch.testing.assert_close(loss, -(bag_weight * log_probs[bag_slot, bag_tokens]).sum())


def test_tokens_are_drawn_from_that_distribution(x: Tensor) -> None:
    """20,000 draws in one slot; where 5 tokens may be drawn, no other is."""
    unembedding, keys = torch.randn(VOCAB, WIDTH), torch.arange(20000)
    hidden = x[:1].expand(len(keys), -1)
    for limit in (VOCAB, 5):
        tokens = make_heads().draw(hidden, unembedding, keys, 2.0, limit)
        probs = (x[0] @ unembedding[:limit].T / 2.0).softmax(-1)
        frequency = torch.bincount(tokens, minlength=limit) / len(keys)
        assert len(frequency) == limit
        assert ((frequency - probs).abs() < 4.0 * (probs / len(keys)).sqrt()).all()


def test_slots_are_judged_one_by_one(x: Tensor) -> None:
    heads, nothing = make_heads(), torch.zeros(0, dtype=torch.int64)
    unembedding, bags = torch.randn(VOCAB, WIDTH), (nothing, nothing, torch.zeros(0), 0)
    zero, rate, loss = heads(x, None, unembedding, *bags)
    assert (zero.shape, rate.shape, loss.shape) == ((5,), (5,), ())
    torch.testing.assert_close(heads(x[3:4], None, unembedding, *bags)[0], zero[3:4])
    torch.testing.assert_close(zero, x @ heads.zero.weight[0] + heads.zero.bias)
    torch.testing.assert_close(rate, x @ heads.rate.weight[0] + heads.rate.bias)


@pytest.mark.parametrize("time_conditioning", ["token", "adaln"])
def test_where_heads_know_the_time_odds_that_something_is_missing_are_a_polynomial_of_what_is_left(
    x: Tensor, time_conditioning: Literal["token", "adaln"]
) -> None:
    heads, nothing = make_heads(time_conditioning), torch.zeros(0, dtype=torch.int64)
    left = torch.tensor([1.0, 0.5, 0.1, 1e-3, 1e-6])
    zero, rate, _ = heads(x, left.log(), torch.randn(VOCAB, WIDTH), nothing, nothing, torch.zeros(0), 0)
    first, second, third = (-(x @ heads.zero.weight.T + heads.zero.bias)).exp().unbind(1)
    torch.testing.assert_close((-zero).exp(), first + second * left + third * left**2)
    torch.testing.assert_close(rate, x @ heads.rate.weight[0] + heads.rate.bias)


def test_predictions_are_float32_in_a_bfloat16_model(x: Tensor) -> None:
    bags = torch.tensor([1]), torch.tensor([2]), torch.ones(1), 1
    unembedding = torch.randn(VOCAB, WIDTH).bfloat16()
    for heads, time_left in ((make_heads(), None), (make_heads("token"), torch.zeros(5))):
        outputs = heads.bfloat16()(x.bfloat16(), time_left, unembedding, *bags)
        assert [output.dtype for output in outputs] == [torch.float32] * 3
