"""Tiles of logits that are reduced where they are computed, against all logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oneflow_kernels import fused_logits_kernels as kernels
from oneflow_kernels import reference_bag
from oneflow_kernels.fused_logits import logsumexp_of_logits, noisy_best_token
from oneflow_kernels.launches import ALL
from tests.kernels.bags import error, poison

CASES = [  # rows, width, vocabulary: less than a tile, and more by a few in each of them
    ((1, 16, 1), torch.float32),
    ((3, 65, 129), torch.bfloat16),
    ((70, 64, 300), torch.float16),
    ((130, 8, 129), torch.bfloat16),
    ((65, 40, 300), torch.float32),
]
every_case = pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)


def operands(rows: int, width: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, width, generator=generator).to(dtype),
        (torch.randn(vocab, width, generator=generator) * 3.0 * width**-0.5).to(dtype),
    )


@pytest.fixture(autouse=True, params=["reference", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ONEFLOW_KERNELS", request.param)
    poison(monkeypatch)
    return str(request.param)


@every_case
def test_error_of_the_logsumexp_is_that_of_float32(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden, weight = operands(*shape, dtype)
    exact = (hidden.double() @ weight.double().T).logsumexp(-1)
    own = logsumexp_of_logits(hidden, weight)
    same = (hidden @ weight.T).logsumexp(-1)
    assert own.dtype == torch.float32
    assert error(own, exact) <= 2.0 * error(same, exact) + 1e-6 * (1.0 + exact.norm().item())


@every_case
def test_the_best_token_is_that_of_the_noisy_logits(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Also of a part of the vocabulary that begins anywhere, with tokens that may not be drawn."""
    hidden, weight = operands(*shape, dtype)
    key = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=torch.Generator().manual_seed(2))
    z = hidden.double() @ weight.double().T
    for first, limit in ((0, shape[2]), (77, 77 + (shape[2] + 1) // 2)):
        token = torch.arange(first, first + shape[2])
        noisy = (z / 0.7 + reference_bag.gumbel(key, token).double()).masked_fill(token >= limit, -torch.inf)
        value, found = noisy_best_token(hidden, weight, key, 0.7, first, limit)
        torch.testing.assert_close(value.double(), noisy.amax(-1), rtol=1e-5, atol=3e-5)
        chosen = noisy.gather(1, (found - first)[:, None]).squeeze(1)
        torch.testing.assert_close(chosen, noisy.amax(-1), rtol=0.0, atol=3e-5)


def test_a_part_without_tokens_that_may_be_drawn_has_none() -> None:
    hidden, weight = operands(3, 16, 20, torch.float32)
    value, _ = noisy_best_token(hidden, weight, torch.arange(3), 1.0, 40, 40)
    assert value.tolist() == [-torch.inf] * 3


def test_no_rows_have_no_results() -> None:
    hidden, weight = operands(0, 16, 20, torch.float32)
    assert logsumexp_of_logits(hidden, weight).shape == (0,)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert [x.shape for x in noisy_best_token(hidden, weight, nothing, 1.0, 0, 20)] == [(0,), (0,)]


def test_operations_are_as_they_are_registered(backend: str) -> None:
    hidden, weight = operands(5, 16, 20, torch.float32)
    torch.library.opcheck(torch.ops.oneflow.logsumexp_of_logits, (hidden, weight))
    torch.library.opcheck(torch.ops.oneflow.noisy_best_token, (hidden, weight, torch.arange(5), 1.0, 0, 20))


def test_tiles_of_noise_hold_whole_counters() -> None:
    for launches in kernels.BEST_TOKEN.values():
        for target in ALL:
            assert all(launch.tiles["BLOCK_N"] % 4 == 0 for launch in launches.on_target(target))


@pytest.mark.parametrize("group", [1, 2, 3, 16])
def test_every_tile_is_computed_whatever_tiles_share_the_vocabulary(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tiles of rows, in groups of which the last is smaller."""
    monkeypatch.setattr(kernels, "GROUP", group)
    hidden, weight = torch.randn(300, 8), torch.randn(150, 8)
    torch.testing.assert_close(logsumexp_of_logits(hidden, weight), (hidden @ weight.T).logsumexp(-1))
