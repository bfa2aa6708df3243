"""Drawn tokens: their frequencies, and that nothing but the logits and the key decides."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor

from oneflow_dist.config import RANGES
from oneflow_kernels.sample_bag import LEAST_TEMPERATURE, lowest_best, sample_bag
from oneflow_kernels.vocabulary_part import VocabularyPart
from tests.launching import Launcher
from tests.messages import Message

WIDTH, VOCAB = 8, 60


def operands(rows: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype)
    return hidden, (0.3 * torch.randn(VOCAB, WIDTH, generator=generator)).to(dtype)


def assert_frequencies(tokens: Tensor, logits: Tensor) -> None:
    """By chi-square; a fair sample fails once in 10,000 times, and this one is always the same."""
    probs = logits.double().softmax(-1)
    count = torch.bincount(tokens, minlength=len(probs)).double()
    assert len(count) == len(probs)
    assert count[probs == 0.0].sum() == 0.0
    expected = (probs * len(tokens))[probs > 0.0]
    assert expected.min() > 5.0
    assert stats.chisquare(count[probs > 0.0].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_tokens_come_as_often_as_their_probability(temperature: float) -> None:
    hidden, weight = operands()
    keys = torch.arange(25_000)
    tokens = sample_bag(hidden.expand(len(keys), -1), weight, keys, temperature)
    assert_frequencies(tokens, hidden[0] @ weight.T / temperature)


def test_tokens_of_the_kernel_come_as_often_as_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")
    hidden, weight = operands(dtype=torch.bfloat16)
    keys = torch.arange(3000) * 2**40 - 2**52
    tokens = sample_bag(hidden.expand(len(keys), -1), weight, keys, 3.0)
    assert_frequencies(tokens, hidden[0].float() @ weight.float().T / 3.0)


def test_tokens_from_the_limit_on_never_come() -> None:
    hidden, weight = operands()
    keys = torch.arange(25_000)
    tokens = sample_bag(hidden.expand(len(keys), -1), weight, keys, 1.5, 23)
    logits = hidden[0] @ weight.T / 1.5
    logits[23:] = -torch.inf
    assert_frequencies(tokens, logits)


def test_a_token_depends_on_its_own_row_and_key_alone() -> None:
    hidden, weight = operands(300)
    keys = torch.randint(2**62, (300,), generator=torch.Generator().manual_seed(1))
    tokens = sample_bag(hidden, weight, keys, 1.0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sample_bag(hidden[order], weight, keys[order], 1.0), tokens[order])
    assert (sample_bag(hidden, weight, keys + 1, 1.0) != tokens).float().mean() > 0.8


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_low_temperature_takes_the_likeliest_token(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    hidden, weight = operands(50)
    least_of_configs = float(RANGES["sampling"]["temperature"].strip("[").partition(",")[0])
    for temperature in (1e-4, LEAST_TEMPERATURE, least_of_configs):
        tokens = sample_bag(hidden, weight, torch.arange(50), temperature)
        assert torch.equal(tokens, (hidden @ weight.T).argmax(-1))


def test_no_slots_get_no_tokens() -> None:
    hidden, weight = operands(0)
    assert sample_bag(hidden, weight, torch.zeros(0, dtype=torch.int64), 1.0).shape == (0,)


def test_of_equal_values_the_lowest_token_is_taken() -> None:
    value, token = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.5, 2.0]]), torch.tensor([[7, 1], [3, 9], [0, 8]])
    assert lowest_best(value, token).tolist() == [3, 8]


def test_arguments_that_make_no_sense_are_refused() -> None:
    hidden, weight = operands()
    key = torch.zeros(1, dtype=torch.int64)
    for arguments, message in (
        (
            (hidden, weight.bfloat16(), key, 1.0),
            "hidden is torch.float32 but weight is torch.bfloat16; cast one of them",
        ),
        *(((hidden, weight, key, t), f"temperature: {t} must be at least 1e-30") for t in (0.0, 1e-38, float("nan"))),
        ((hidden, weight, key, 1.0, 0), "limit: 0 must be positive"),
    ):
        with pytest.raises(ValueError) as error:
            sample_bag(*arguments)
        assert Message(error.value) == message


def compile_sampling() -> None:
    """In a process whose functions do not check shapes, which Dynamo cannot follow."""
    hidden, weight = operands(9)
    keys = torch.arange(9)
    plain = sample_bag(hidden, weight, keys, 0.8, 50)
    compiled = torch.compile(sample_bag, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden, weight, keys, 0.8, 50), plain)


def test_it_compiles_as_one_graph(launcher: Launcher) -> None:
    launcher.call(1, compile_sampling)


def sample_on_ranks(backend: str) -> list[list[int]]:
    """With all tokens, with those of the first rank alone, and with those of several."""
    rank, size = dist.get_rank(), dist.get_world_size()
    hidden, weight = operands(100, torch.bfloat16)
    part = VocabularyPart(size=size, group=dist.group.WORLD.group_name, first_token=rank * (VOCAB // size))
    keys = torch.arange(100) * 2**33
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", backend)
        return [
            sample_bag(hidden, weight.chunk(size)[rank], keys, 1.3, limit, part=part).tolist()
            for limit in (None, 13, 41)
        ]


@pytest.mark.parametrize(("size", "backend"), [(4, "reference"), (2, "triton")])
def test_ranks_with_parts_of_the_vocabulary_draw_the_tokens_of_one(launcher: Launcher, size: int, backend: str) -> None:
    (alone,) = launcher.call(1, sample_on_ranks, backend)
    assert all(max(tokens) < limit for tokens, limit in zip(alone, (60, 13, 41), strict=True))
    assert len(set(alone[0])) > 20
    for found in launcher.call(size, sample_on_ranks, backend):
        assert found == alone
