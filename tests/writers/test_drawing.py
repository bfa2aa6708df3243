from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_dist.model.axis import Axis
from oneflow_dist.writers import drawing
from oneflow_dist.writers.drawing import draw_tokens, sample_tokens
from tests.launching import Launcher
from tests.sampling import sampling

PROBS = torch.tensor([0.5, 0.05, 0.25, 0.2])


def frequencies(temperature: float, top_p: float, top_k: int = 0) -> list[float]:
    """How often each token comes, over evenly spaced draws."""
    num = 4000
    draws = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens = sample_tokens(PROBS.log().expand(num, -1).contiguous(), draws, temperature, top_p, top_k)
    return (torch.bincount(tokens, minlength=len(PROBS)) / num).tolist()


def test_tokens_come_as_often_as_their_probability() -> None:
    assert frequencies(1.0, 1.0) == pytest.approx(PROBS.tolist(), abs=3e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature: float) -> None:
    expected = PROBS ** (1.0 / temperature)
    assert frequencies(temperature, 1.0) == pytest.approx((expected / expected.sum()).tolist(), abs=3e-4)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.3, [0]),
        (0.49, [0]),
        (0.51, [0, 2]),
        (0.74, [0, 2]),
        (0.76, [0, 2, 3]),
        (0.94, [0, 2, 3]),
        (0.96, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    expected = torch.zeros(4)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    assert frequencies(1.0, top_p) == pytest.approx(expected.tolist(), abs=3e-4)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_likeliest_tokens(top_k: int, kept: list[int]) -> None:
    expected = torch.zeros(4)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    assert frequencies(1.0, 1.0, top_k) == pytest.approx(expected.tolist(), abs=3e-4)


def test_top_p_is_a_part_of_what_top_k_has_left() -> None:
    """Of .5, .25 and .2 the first two are .79."""
    two, three = [2 / 3, 0.0, 1 / 3, 0.0], [0.5 / 0.95, 0.0, 0.25 / 0.95, 0.2 / 0.95]
    assert frequencies(1.0, 0.78, 3) == pytest.approx(two, abs=3e-4)
    assert frequencies(1.0, 0.80, 3) == pytest.approx(three, abs=3e-4)


def test_at_the_lowest_temperature_the_likeliest_token_is_taken() -> None:
    assert frequencies(1e-30, 1.0) == [1.0, 0.0, 0.0, 0.0]


def test_a_low_temperature_or_top_p_takes_the_likeliest_token() -> None:
    assert frequencies(1e-3, 1.0) == [1.0, 0.0, 0.0, 0.0]
    assert frequencies(1.0, 1e-9) == [1.0, 0.0, 0.0, 0.0]


def test_extreme_draws_take_tokens_that_are_possible() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]]).expand(2, 4).contiguous()
    draws = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert set(sample_tokens(logits, draws, 1.0, 1.0).tolist()) == {0, 2}
    assert set(sample_tokens(logits, draws, 1.0, 0.9).tolist()) == {0, 2}


def test_each_row_has_its_own_distribution_and_draw() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0], [0.0, 0.0]])
    assert sample_tokens(logits, torch.tensor([0.5, 0.5, 0.2, 0.8]), 1.0, 1.0).tolist()[:2] == [0, 1]
    first, second = sample_tokens(logits[2:], torch.tensor([0.2, 0.8]), 1.0, 1.0).tolist()
    assert first != second
    assert sample_tokens(logits[:0], torch.zeros(0), 1.0, 1.0).shape == (0,)


# Over a tensor axis, each rank with its part of the vocabulary.


def draw_cases() -> list[tuple[Tensor, Tensor, float, float, int]]:
    """Logits, draws, temperature, top_p and top_k: usual ones, nearly all impossible, all alike, and no rows."""
    generator = torch.Generator().manual_seed(0)
    usual = 3.0 * torch.randn(63, 24, generator=generator)  # rows that neither two nor four ranks share evenly
    few = usual.clone()
    few[torch.rand(few.shape, generator=generator) < 0.9] = -torch.inf
    few[:, 13] = 0.0
    few[:, 18:] = -torch.inf  # all that the last of four ranks has
    alike = torch.zeros(63, 24)
    draws = torch.rand(63, generator=generator, dtype=torch.float64)
    draws[:2] = torch.tensor([0.0, 1.0 - 2.0**-53])
    return [
        (logits, draws[: len(logits)], temperature, top_p, top_k)
        for logits in (usual, few, alike, usual[:1], usual[:0])
        for temperature, top_p, top_k in (
            *((1.0, 0.9, 0), (2.0, 0.5, 0), (1.0, 1e-9, 0), (0.5, 0.95, 0)),
            *((1.0, 1.0, 5), (2.0, 0.7, 9), (1.0, 1.0, 1), (1.0, 1.0, 99)),
        )
    ]


def draw_on_ranks() -> list[list[int]]:
    """As the sampler does, from a model that says these logits, for documents that draw these numbers."""
    rank, size = dist.get_rank(), dist.get_world_size()
    drawing.LOGIT_SLOTS = 5  # which no axis divides
    axis = Axis(rank=rank, size=size, group=dist.group.WORLD.group_name)
    found = []
    for logits, draws, temperature, top_p, top_k in draw_cases():
        model = SimpleNamespace(axis=axis, bag_logits=lambda hidden: hidden.chunk(size, dim=1)[rank].clone())
        rngs = [SimpleNamespace(random=lambda draw=draw: draw) for draw in draws.tolist()]
        kept = sampling(steps=1, temperature=temperature, top_p=top_p, top_k=top_k)
        found.append(draw_tokens(model, logits, rngs, kept, 24).tolist())  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_with_parts_of_the_vocabulary_draw_the_tokens_of_one_process(launcher: Launcher, size: int) -> None:
    """To the bit: each draws for some slots from all of their logits."""
    expected = [sample_tokens(*case) for case in draw_cases()]
    assert len(torch.cat(expected).unique()) == 24
    assert all(
        logits.gather(1, tokens[:, None]).isfinite().all()
        for (logits, *_), tokens in zip(draw_cases(), expected, strict=True)
    )
    for found in launcher.call(size, draw_on_ranks):
        assert found == [tokens.tolist() for tokens in expected]
