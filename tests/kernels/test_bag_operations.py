"""Each step between the products, on both backends, against what its docstring says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oneflow_kernels import bag_operations as operations
from oneflow_kernels import bag_operations_kernels
from tests.kernels.bags import poison

every_backend = pytest.mark.parametrize("backend", ["reference", "triton"])
STARTS = torch.tensor([2, 4, 4, 5, 8])  # of four slots; the first two and the last two bag tokens are other slots'
BAG_TOKENS = torch.tensor([1, 2, 0, 5, 4, 69, -3, 70, 3, 3])
OWN = slice(2, 8)
ROW = torch.tensor([0, 0, 2, 3, 3, 3])


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch, backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """What `softmax_` is given: four slots, 70 tokens of which two bag tokens are outside."""
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    poison(monkeypatch)

    def make(spread: float = 3.0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        logits = spread * torch.randn(4, 70, generator=generator)
        weight = torch.rand(len(BAG_TOKENS), generator=generator)
        return logits, torch.full((len(BAG_TOKENS),), 99.0), BAG_TOKENS, weight, STARTS

    return make


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_become_what_the_products_need(chunk: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> None:
    logits, target, tokens, weight, starts = chunk()
    tokens = tokens.clone()
    tokens[3] = tokens[2]  # the first slot has one token twice
    z = logits.double()
    lse, base, mass = operations.softmax_(logits, target, tokens, weight, starts, dtype)
    is_own = (tokens[OWN] >= 0) & (tokens[OWN] < 70)
    own = tokens[OWN].where(is_own, 0)

    exact = z.softmax(-1)
    torch.testing.assert_close(lse.double(), z.logsumexp(-1), rtol=1e-6, atol=1e-6)
    factor = (base - lse).double().exp()
    exact[ROW[is_own], own[is_own]] = 0.0
    probs = operations.probs_of(logits, dtype).double() * factor[:, None]
    assert ((probs - exact).abs() <= 0.6 * max(torch.finfo(dtype).eps, 1e-5) * exact + 1e-7).all()
    torch.testing.assert_close(mass, torch.zeros(4).index_add(0, ROW, weight[OWN]))
    torch.testing.assert_close(target[OWN].double(), z[ROW, own] * is_own, rtol=1e-6, atol=1e-6)
    assert target[[0, 1, 8, 9]].tolist() == [99.0] * 4  # of other chunks


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_rising", [True, False])
def test_a_row_that_rises_far_keeps_its_precision(
    chunk: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, is_rising: bool
) -> None:
    """Over five blocks of the kernel; what was written of the first ones is measured anew, more than once."""
    logits = torch.linspace(-150.0, 150.0, 18000).expand(2, -1).clone()
    logits = logits if is_rising else logits.flip(1)
    logits[1] *= 0.2
    expected = logits.double().softmax(-1)
    nothing = torch.zeros(0)
    starts = torch.zeros(3, dtype=torch.int64)
    lse, base, mass = operations.softmax_(logits, nothing, starts[:0], nothing.clone(), starts, dtype)
    probs = operations.probs_of(logits, dtype).double() * (base - lse).double().exp()[:, None]
    assert mass.tolist() == [0.0, 0.0]
    assert (probs - expected).abs().max() < 2.0 * max(torch.finfo(dtype).eps, 1e-5) * expected.max()
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, dtype=torch.float64), rtol=5e-3, atol=0.0)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 530])
def test_hidden_rows_get_the_one_hot_part(
    chunk: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, width: int
) -> None:
    *_, tokens, factor, starts = chunk()
    grad, weight, scale = torch.randn(4, width), torch.randn(70, width).to(dtype), torch.rand(4)
    factor[6:8] = 0.0  # as of tokens outside
    expected = grad.double() * scale[:, None]
    for pair, row in zip(range(2, 6), ROW.tolist(), strict=False):
        expected[row] -= factor[pair] * weight[tokens[pair]].double()
    operations.hidden_grad_(grad, scale, weight, tokens, factor, starts)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 530])
def test_rows_of_tokens_get_the_one_hot_part(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, width: int
) -> None:
    """Tokens that come often, once and never, and those of other parts."""
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    grad, hidden = torch.randn(9, width), torch.randn(5, width).to(dtype)
    tokens = torch.tensor([3, 8, 3, -1, 9, 3, *[0] * 20])
    slot = torch.arange(26) % 5
    factor = torch.rand(26) * ((tokens >= 0) & (tokens < 9))
    expected = grad.double()
    for pair in range(26):
        if 0 <= tokens[pair] < 9:
            expected[tokens[pair]] -= factor[pair] * hidden[slot[pair]].double()
    operations.weight_grad_(grad, hidden, tokens, slot, factor)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=3e-6)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 530])
def test_bag_logits_are_those_of_the_pairs(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, width: int
) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    poison(monkeypatch)
    hidden, weight = torch.randn(5, width).to(dtype), torch.randn(9, width).to(dtype)
    tokens, slot = torch.tensor([3, 8, 3, -1, 9, 0, 5, 5, 5, 1]), torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 4, 4])
    expected = (hidden[slot].double() * weight[tokens.clamp(0, 8)].double()).sum(-1)
    expected[3:5] = 0.0
    own = operations.bag_token_logits(hidden, weight, tokens, slot)
    torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_sum_in_the_dtype_of_what_they_write(dtype: torch.dtype) -> None:
    a, b = torch.randn(5, 300).to(dtype), torch.randn(300, 7).to(dtype)
    exact = a.double() @ b.double()
    out = torch.full((5, 7), torch.nan, dtype=operations.wide(dtype))
    operations.product_(out, a, b, False)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
    operations.product_(out, a, b, True)
    torch.testing.assert_close(out.double(), 2.0 * exact, rtol=1e-5, atol=1e-4)


def test_probabilities_fit_in_their_dtype_until_they_are_measured_anew() -> None:
    for dtype, reach in bag_operations_kernels.REACH.items():
        assert torch.tensor(reach).exp() < torch.finfo(dtype).max / 2.0


def test_operations_are_as_they_are_registered() -> None:
    logits, hidden, weight = torch.randn(4, 70), torch.randn(5, 6), torch.randn(70, 6)
    pairs = torch.rand(10)
    operands = {
        "product_": (torch.empty(5, 70), hidden, weight.T, False),
        "bag_softmax_": (*(logits, pairs.clone(), BAG_TOKENS, pairs, STARTS, torch.float32),),
        "bag_hidden_grad_": (torch.randn(4, 6), torch.rand(4), weight, BAG_TOKENS, pairs, STARTS),
        "bag_weight_grad_": (torch.randn(70, 6), hidden, BAG_TOKENS, torch.arange(10) // 2, pairs),
        "bag_logits": (hidden, weight, BAG_TOKENS, torch.arange(10) // 2),
    }
    for name, arguments in operands.items():
        torch.library.opcheck(getattr(torch.ops.oneflow, name), arguments)
